//! The admin listener: its own port, on loopback unless configured otherwise.
//!
//! Reading is open to whoever reaches the port: `/metrics`, `/healthz` (the process runs), `/readyz` (it can do its work;
//! if not, which part and why), `/status`. Whatever changes state wants the bearer token or, with TLS and
//! `cert-allowed-cn`, comes over a connection that a client certificate opened; with neither configured it is refused.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::{info, warn};

use crate::config::{Invalid, Secret, Validate};
use crate::serve::{ALPN, Listener, Peer, ServeLimits, serve};
use crate::shutdown::Shutdown;
use crate::telemetry::Telemetry;
use crate::tls::Security;

/// How often recorded metrics are folded together when nobody scrapes.
const UPKEEP: Duration = Duration::from_secs(5);

/// The `[admin]` section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct AdminConfig {
    /// `host:port`. Services set a default port of their own.
    pub addr: String,
    /// Bearer token for whatever changes state; `env:`, `file:` or literal.
    pub token: Option<Secret>,
    /// TLS of this listener alone.
    pub security: Security,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self::on("127.0.0.1:0")
    }
}

impl AdminConfig {
    /// Plaintext on `addr`, without a token.
    pub fn on(addr: impl Into<String>) -> Self {
        Self { addr: addr.into(), token: None, security: Security::default() }
    }
}

impl Validate for AdminConfig {
    fn validate(&self) -> Result<(), Invalid> {
        if !self.addr.contains(':') {
            return Err(Invalid::new("admin.addr", format!("`{}` is not host:port", self.addr)));
        }
        self.security.validate().map_err(|invalid| invalid.within("admin"))
    }
}

/// Which parts of the process can do their work. Cheap to clone; clones are the same. Ready means: at least one part has
/// reported, and none is in trouble.
#[derive(Clone, Debug, Default)]
pub struct Health {
    parts: Arc<Mutex<BTreeMap<String, Result<(), String>>>>,
}

impl Health {
    /// Nothing has reported yet, so not ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reports a part: fine, or the reason why not.
    pub fn set(&self, part: impl Into<String>, state: Result<(), String>) {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).insert(part.into(), state);
    }

    /// True if every part that has reported is fine, and one has.
    pub fn is_ready(&self) -> bool {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        !parts.is_empty() && parts.values().all(Result::is_ok)
    }

    /// `{"ready": …, "parts": {name: "ok" | reason}}`.
    pub fn to_json(&self) -> Value {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let ready = !parts.is_empty() && parts.values().all(Result::is_ok);
        let parts: serde_json::Map<_, _> = parts
            .iter()
            .map(|(name, state)| {
                (name.clone(), Value::from(state.as_ref().err().map_or("ok", String::as_str)))
            })
            .collect();
        json!({ "ready": ready, "parts": parts })
    }
}

type Status = dyn Fn() -> Value + Send + Sync;

/// The listener's routes, before it is bound.
#[derive(Clone)]
pub struct Admin {
    telemetry: Telemetry,
    health: Health,
    status: Arc<Status>,
    open: Router,
    protected: Router,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").field("health", &self.health).finish_non_exhaustive()
    }
}

impl Admin {
    /// The standard routes; `/status` is empty until [`Self::status`].
    pub fn new(telemetry: Telemetry, health: Health) -> Self {
        Self {
            telemetry,
            health,
            status: Arc::new(|| json!({})),
            open: Router::new(),
            protected: Router::new(),
        }
    }

    /// What `/status` answers. Called at each request: no blocking in it.
    #[must_use]
    pub fn status(mut self, status: impl Fn() -> Value + Send + Sync + 'static) -> Self {
        self.status = Arc::new(status);
        self
    }

    /// Further routes that only read.
    #[must_use]
    pub fn routes(mut self, router: Router) -> Self {
        self.open = self.open.merge(router);
        self
    }

    /// Further routes that change state: they want the token or a client certificate.
    #[must_use]
    pub fn protected(mut self, router: Router) -> Self {
        self.protected = self.protected.merge(router);
        self
    }

    /// Binds and serves until `shutdown`; for [`crate::shutdown::Tasks::spawn`].
    pub async fn serve(self, config: AdminConfig, shutdown: Shutdown) -> anyhow::Result<()> {
        self.bind(&config).await?.run(shutdown).await
    }

    /// Binds, so that the port is known.
    pub async fn bind(self, config: &AdminConfig) -> anyhow::Result<Bound> {
        let tls = config.security.server_config(&ALPN).context("admin.security")?;
        let listener = Listener::tcp(&config.addr).await.context("admin.addr")?;
        let local_addr = listener.local_addr().context("the admin listener has no address")?;
        let guard = Guard {
            token: config.token.clone(),
            by_certificate: config.security.enabled() && !config.security.cert_allowed_cn.is_empty(),
        };
        if guard.token.is_none() && !guard.by_certificate && !local_addr.ip().is_loopback() {
            warn!(%local_addr, "the admin listener can be reached from outside; it has no token, so it only reads");
        }
        let telemetry = self.telemetry.clone();
        Ok(Bound { router: self.router(guard), listener, local_addr, tls, telemetry })
    }

    fn router(self, guard: Guard) -> Router {
        let Self { telemetry, health, status, open, protected } = self;
        let levels = telemetry.clone();
        let protected = protected
            .route("/log-level", put(move |level: String| std::future::ready(set_level(&levels, &level))))
            .layer(middleware::from_fn_with_state(Arc::new(guard), authorise));
        Router::new()
            .route(
                "/metrics",
                get(move || {
                    let text = telemetry.render_metrics();
                    std::future::ready((
                        [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
                        text,
                    ))
                }),
            )
            .route("/healthz", get(|| std::future::ready("ok\n")))
            .route(
                "/readyz",
                get(move || {
                    let code =
                        if health.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                    std::future::ready((code, Json(health.to_json())))
                }),
            )
            .route("/status", get(move || std::future::ready(Json(status()))))
            .merge(open)
            .merge(protected)
    }
}

fn set_level(telemetry: &Telemetry, level: &str) -> (StatusCode, String) {
    match telemetry.set_level(level.trim()) {
        Ok(()) => {
            info!(level = level.trim(), "log level changed");
            (StatusCode::OK, format!("log level is now {}\n", level.trim()))
        }
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

/// Routes that change state outside the admin listener, on a port where the original let everybody: they want the token as
/// soon as one is configured.
pub fn guarded(routes: Router, token: Option<&Secret>) -> Router {
    match token {
        None => routes,
        Some(token) => {
            let guard = Guard { token: Some(token.clone()), by_certificate: false };
            routes.layer(middleware::from_fn_with_state(Arc::new(guard), authorise))
        }
    }
}

/// What lets a request change state.
#[derive(Debug)]
struct Guard {
    token: Option<Secret>,
    /// The listener accepts only clients whose certificate names are allowed.
    by_certificate: bool,
}

impl Guard {
    fn check(&self, bearer: Option<&str>) -> Result<(), (StatusCode, String)> {
        if self.by_certificate {
            return Ok(());
        }
        let Some(token) = &self.token else {
            let text = "changing state needs admin.token, or admin.security with cert-allowed-cn, in the configuration\n";
            return Err((StatusCode::FORBIDDEN, text.to_owned()));
        };
        let token = token
            .reveal()
            .map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, format!("admin.token: {error}\n")))?;
        match bearer {
            Some(given) if !token.is_empty() && same(given.as_bytes(), token.as_bytes()) => Ok(()),
            Some(_) => Err((StatusCode::UNAUTHORIZED, "the token is wrong\n".to_owned())),
            None => Err((
                StatusCode::UNAUTHORIZED,
                "send the header `Authorization: Bearer <admin.token>`\n".to_owned(),
            )),
        }
    }
}

/// Compares without telling by its duration where the first difference is.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

async fn authorise(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let bearer = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    let verdict = guard.check(bearer);
    let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    match verdict {
        Ok(()) => {
            info!(%method, path, ?peer, "admin request accepted");
            next.run(request).await
        }
        Err(refusal) => {
            warn!(%method, path, ?peer, "admin request refused");
            refusal.into_response()
        }
    }
}

/// A bound admin listener.
#[derive(Debug)]
pub struct Bound {
    router: Router,
    listener: Listener,
    local_addr: SocketAddr,
    tls: Option<Arc<rustls::ServerConfig>>,
    telemetry: Telemetry,
}

impl Bound {
    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Serves until `shutdown`.
    pub async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        info!(address = %self.local_addr, "admin listener ready");
        let limits = ServeLimits {
            max_concurrent_streams: Some(64),
            max_connections: 128,
            drain: Duration::from_secs(2),
            ..ServeLimits::default()
        };
        let upkeep = async {
            loop {
                tokio::time::sleep(UPKEEP).await;
                self.telemetry.upkeep();
            }
        };
        tokio::select! {
            served = serve(vec![self.listener], self.router, self.tls, limits, shutdown) => served,
            never = upkeep => never,
        }
    }
}
