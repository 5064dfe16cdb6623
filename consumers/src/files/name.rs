//! Names of databases and tables as names of folders.
//!
//! Letters, digits, `_` and `-` stay; every other byte becomes `%` and two hexadecimal digits, dots and slashes among
//! them, so that no name can leave its folder or be one that a file system treats specially. Long names are cut and end
//! with a hash of the whole.

use std::fmt::Write as _;

/// Most bytes of a folder's name; file systems take 255.
const LIMIT: usize = 200;

/// A name as one path component: never empty, `.` or `..`.
pub fn component(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-' {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    if out.is_empty() {
        out.push('%');
    }
    if out.len() > LIMIT {
        let high = crc32c::crc32c(name.as_bytes());
        let low = crc32c::crc32c_append(high, name.as_bytes());
        // Not within an escape.
        let mut cut = LIMIT - 17;
        while out.as_bytes()[cut - 1] == b'%' || out.as_bytes()[cut - 2] == b'%' {
            cut -= 1;
        }
        out.truncate(cut);
        let _ = write!(out, "~{high:08x}{low:08x}");
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hostile_names() {
        assert_eq!(component("orders"), "orders");
        assert_eq!(component("../../etc/passwd"), "%2E%2E%2F%2E%2E%2Fetc%2Fpasswd");
        assert_eq!(component(".."), "%2E%2E");
        assert_eq!(component("weird `name"), "weird%20%60name");
        assert_eq!(component("青"), "%E9%9D%92");
        assert_eq!(component("a\0b"), "a%00b");
        assert_eq!(component(""), "%");
    }

    proptest! {
        #[test]
        fn one_safe_component(name in "\\PC{0,300}") {
            let encoded = component(&name);
            prop_assert!(!encoded.is_empty() && encoded.len() <= LIMIT);
            prop_assert!(encoded.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-%~".contains(&b)));
        }

        #[test]
        fn short_names_decode_to_themselves(name in "\\PC{1,20}") {
            let encoded = component(&name);
            let decoded = percent_encoding::percent_decode_str(&encoded).decode_utf8().unwrap().into_owned();
            prop_assert_eq!(decoded, name);
        }

        #[test]
        fn long_names_stay_apart(name in "[青a]{100,200}", other in "[青a]{100,200}") {
            prop_assume!(name != other);
            prop_assert_ne!(component(&name), component(&other));
        }
    }
}
