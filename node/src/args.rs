//! Command lines in the original's style.
//!
//! TiDB Binlog's programs use Go's `flag` package, where `-addr`, `--addr`, `-addr=x` mean the same. clap knows only the
//! second as a long flag, so the command line is put into that form first.

use std::ffi::OsString;

/// Turns Go-style long flags (`-pd-urls`, `-addr=x`) into clap's (`--pd-urls`, `--addr=x`). One-letter flags (`-V`, `-L
/// info`, `-L=info`), negative numbers, a lone `-`, the program's name and everything after `--` stay as they are. A value
/// that itself looks like a flag has to be given as `-name=-value`.
pub fn go_style(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut flags_over = false;
    arguments
        .into_iter()
        .enumerate()
        .map(|(index, argument)| {
            if index == 0 || flags_over {
                return argument;
            }
            flags_over = argument == "--";
            match argument.to_str().and_then(|text| text.strip_prefix('-')) {
                Some(rest) if is_long(rest) => OsString::from(format!("--{rest}")),
                _ => argument,
            }
        })
        .collect()
}

/// Two letters or more before the `=`, starting with a letter.
fn is_long(rest: &str) -> bool {
    let name = rest.split('=').next().unwrap_or_default();
    name.chars().count() > 1 && name.starts_with(|c: char| c.is_ascii_alphabetic())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn strings(arguments: &[&str]) -> Vec<String> {
        go_style(arguments.iter().map(OsString::from)).into_iter().map(|a| a.into_string().unwrap()).collect()
    }

    #[test]
    fn forms() {
        assert_eq!(
            strings(&[
                "pump",
                "-addr",
                "x:1",
                "-pd-urls=http://y",
                "--gc",
                "7",
                "-L",
                "info",
                "-L=warn",
                "-V"
            ]),
            ["pump", "--addr", "x:1", "--pd-urls=http://y", "--gc", "7", "-L", "info", "-L=warn", "-V"]
        );
        assert_eq!(
            strings(&["-pump", "-", "-initial-commit-ts", "-1", "--", "-addr"]),
            ["-pump", "-", "--initial-commit-ts", "-1", "--", "-addr"]
        );
    }

    proptest! {
        #[test]
        fn idempotent(arguments in proptest::collection::vec("-{0,2}[a-z0-9=]{0,5}", 0..6)) {
            let once = go_style(arguments.into_iter().map(OsString::from));
            prop_assert_eq!(go_style(once.clone()), once);
        }
    }
}
