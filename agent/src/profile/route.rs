//! Requests of one kind under one name, for flame graphs by route.
//!
//! The route itself is known to the framework alone. What identifies a single thing in a path (a number, a UUID, a hash, a
//! long token) is replaced, as access-log analysers do. It is a guess: it names files and headings, never a span
//! attribute (`http.route` must not be made up, semantic conventions for HTTP).

/// Longest segment that is kept when it mixes letters and digits.
const LONGEST_MIXED: usize = 12;
/// Shortest run of hexadecimal digits that is taken for a hash.
const SHORTEST_HASH: usize = 8;

/// `GET /items/{}/stock` of `GET` and `/items/4711/stock?full=1`.
pub fn name(method: &str, path: &str) -> String {
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let segments: Vec<&str> =
        path.split('/').map(|segment| if is_identifier(segment) { "{}" } else { segment }).collect();
    format!("{method} {}", segments.join("/"))
}

fn is_identifier(segment: &str) -> bool {
    let digits = segment.bytes().filter(u8::is_ascii_digit).count();
    let hex = segment.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    if segment.is_empty() || digits == 0 {
        // `facade` and `deadbeef` are words as well.
        return segment.len() > 40;
    }
    digits == segment.len()
        || (hex && segment.len() >= SHORTEST_HASH)
        || (digits * 2 >= segment.len() && !is_version(segment))
        || segment.len() > LONGEST_MIXED
}

/// `v1`, `v2beta1`
fn is_version(segment: &str) -> bool {
    segment.strip_prefix('v').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_lose_their_identity() {
        for (path, expected) in [
            ("/", "GET /"),
            ("/items/4711/stock?full=1", "GET /items/{}/stock"),
            ("/api/v2/users/123e4567-e89b-12d3-a456-426614174000", "GET /api/v2/users/{}"),
            ("/blob/d41d8cd98f00b204", "GET /blob/{}"),
            ("/orders/A-20391", "GET /orders/{}"),
            ("/oauth2/callback", "GET /oauth2/callback"),
            ("/decade/facade", "GET /decade/facade"),
            ("/s/Zm9vYmFyYmF6cXV4MTIz", "GET /s/{}"),
            ("/größe/1", "GET /größe/{}"),
            ("*", "GET *"),
        ] {
            assert_eq!(name("GET", path), expected);
        }
    }
}
