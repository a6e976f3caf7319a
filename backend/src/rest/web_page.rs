//! `GET /`: the switch in a browser. Three files, built in; everything they show is asked for over the REST interface.
//!
//! Nothing from elsewhere is loaded, and nothing in the page may be run but its own script (Content-Security-Policy).

use super::routes::Admin;
use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;

/// A file's media type and bytes.
type File = (&'static str, &'static str);

const INDEX: File = (
    "text/html; charset=utf-8",
    include_str!("web_page/index.html"),
);
const STYLE: File = ("text/css; charset=utf-8", include_str!("web_page/page.css"));
const SCRIPT: File = (
    "text/javascript; charset=utf-8",
    include_str!("web_page/page.js"),
);

/// Paths that are answered to anyone who can connect: they tell nothing of this switch.
pub const PATHS: [&str; 3] = ["/", "/page.css", "/page.js"];

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; form-action 'self'; \
                      base-uri 'none'; frame-ancestors 'none'";

/// `/` and what it needs.
pub fn routes() -> Router<Admin> {
    let files = PATHS.into_iter().zip([INDEX, STYLE, SCRIPT]);
    files.fold(Router::new(), |router, (path, file)| {
        router.route(path, get(move || async move { answer(file) }))
    })
}

fn answer((media_type, text): File) -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, media_type),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // Another version may answer the next time.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text)
}
