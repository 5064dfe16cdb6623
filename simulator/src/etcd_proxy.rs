//! Hands etcd's gRPC calls on to a real etcd, unread: any service, any kind of stream, both ways at once.

use std::convert::Infallible;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tower::{ServiceExt as _, service_fn};

/// The packages of etcd's public services: KV, Watch, Lease, Auth, Cluster, Maintenance; locks; elections.
const PREFIXES: [&str; 3] = ["/etcdserverpb.", "/v3lockpb.", "/v3electionpb."];

/// To reach the etcd behind.
const CONNECT: Duration = Duration::from_secs(3);

/// Adds etcd's services to a router. Calls of any other unknown service get gRPC's *unimplemented*.
pub(crate) fn mount(router: Router, etcd: Option<&str>) -> anyhow::Result<Router> {
    let channel = match etcd {
        None => None,
        Some(url) => {
            let endpoint = Endpoint::from_shared(url.to_owned())
                .with_context(|| format!("etcd URL `{url}` is not valid"))?;
            // Connects at the first call and again after a failure.
            Some(endpoint.tcp_nodelay(true).connect_timeout(CONNECT).connect_lazy())
        }
    };
    let forward = service_fn(move |request: Request| {
        let channel = channel.clone();
        async move { Ok::<_, Infallible>(forward(channel, request).await) }
    });
    Ok(router.fallback_service(forward))
}

async fn forward(channel: Option<Channel>, request: Request) -> Response {
    let path = request.uri().path();
    if !PREFIXES.iter().any(|prefix| path.starts_with(prefix)) {
        return refuse(Status::unimplemented(format!("{path} is not one of the calls that this PD answers")));
    }
    let Some(channel) = channel else {
        return refuse(Status::unavailable("this PD has no etcd behind it (see --etcd)"));
    };
    match channel.oneshot(request.map(tonic::body::Body::new)).await {
        Ok(response) => response.map(Body::new),
        Err(error) => {
            let cause =
                std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
            refuse(Status::unavailable(format!("the etcd behind this PD did not answer: {error}{cause}")))
        }
    }
}

fn refuse(status: Status) -> Response {
    status.into_http::<Body>()
}
