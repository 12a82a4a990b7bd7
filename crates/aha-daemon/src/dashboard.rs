//! The dashboard: pages for browsers, which ask the API for what they show.
//!
//! `web/` has the sources, `assets/` what `web/build` makes of them, which is part of this program: nothing is loaded
//! from elsewhere when a browser shows it, and cargo needs no Node.
//!
//! # Safety of the pages
//! They show what models wrote. Their script sets texts as texts and never as markup; should it fail to, the policy
//! lets nothing run but the files here, makes browsers refuse markup from strings, and lets nothing be sent elsewhere.

use std::sync::LazyLock;

use axum::Router;
use axum::body::Body;
use axum::extract;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use sha2::{Digest, Sha256};

use crate::api::problem::Problem;
use crate::error::Error;

/// What a browser may do with the pages.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types 'none'";

/// A file of the dashboard.
struct Asset {
    name: &'static str,
    media_type: &'static str,
    bytes: &'static [u8],
}

const PAGE: Asset = Asset {
    name: "index.html",
    media_type: "text/html; charset=utf-8",
    bytes: include_bytes!("../assets/index.html"),
};

const ASSETS: [Asset; 4] = [
    Asset {
        name: "dashboard.js",
        media_type: "text/javascript; charset=utf-8",
        bytes: include_bytes!("../assets/dashboard.js"),
    },
    Asset {
        name: "dashboard.css",
        media_type: "text/css; charset=utf-8",
        bytes: include_bytes!("../assets/dashboard.css"),
    },
    Asset {
        name: "icon.svg",
        media_type: "image/svg+xml",
        bytes: include_bytes!("../assets/icon.svg"),
    },
    Asset {
        name: "licences.txt",
        media_type: "text/plain; charset=utf-8",
        bytes: include_bytes!("../assets/licences.txt"),
    },
];

/// The digest of each file, by which browsers know whether theirs is the same.
static TAGS: LazyLock<Vec<(&'static str, String)>> = LazyLock::new(|| {
    let tag = |asset: &Asset| {
        let digest = Sha256::digest(asset.bytes);
        let hex: String = digest[..12].iter().map(|byte| format!("{byte:02x}")).collect();
        (asset.name, format!("\"{hex}\""))
    };
    std::iter::once(&PAGE).chain(&ASSETS).map(tag).collect()
});

/// Whether a path is one of the dashboard's.
pub fn is_of(path: &str) -> bool {
    path == "/" || path.starts_with("/assets/")
}

/// The page and its files.
pub fn router() -> Router {
    Router::new().route("/", get(page)).route("/assets/{name}", get(asset))
}

async fn page(headers: HeaderMap) -> Response {
    PAGE.answer(&headers)
}

async fn asset(extract::Path(name): extract::Path<String>, headers: HeaderMap) -> Response {
    match ASSETS.iter().find(|asset| asset.name == name) {
        Some(asset) => asset.answer(&headers),
        None => {
            let message = "the dashboard has no such file";
            Problem(Error::not_found(message, "open `/` in a browser")).into_response()
        }
    }
}

impl Asset {
    fn answer(&self, headers: &HeaderMap) -> Response {
        let tag = TAGS.iter().find(|(name, _)| *name == self.name).map_or("", |(_, tag)| tag);
        let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
        let mut response = match known.is_some_and(|known| known == tag) {
            true => StatusCode::NOT_MODIFIED.into_response(),
            false => Body::from(self.bytes).into_response(),
        };
        let head = response.headers_mut();
        for (name, value) in [
            (header::CONTENT_TYPE, self.media_type),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::CACHE_CONTROL, "no-cache"),
        ] {
            head.insert(name, HeaderValue::from_static(value));
        }
        if let Ok(tag) = HeaderValue::from_str(tag) {
            head.insert(header::ETAG, tag);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;

    fn folder() -> PathBuf {
        PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"))
    }

    fn text(asset: &Asset) -> &'static str {
        std::str::from_utf8(asset.bytes).unwrap()
    }

    fn header_of<'a>(response: &'a Response, name: &str) -> &'a str {
        response.headers()[name].to_str().unwrap()
    }

    #[tokio::test]
    async fn a_file_has_a_policy_and_is_sent_once() {
        let response = page(HeaderMap::new()).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert!(header_of(&response, "content-security-policy").starts_with("default-src 'none'"));
        assert!(!POLICY.contains("unsafe"));
        let tag = response.headers()[header::ETAG].clone();
        let again = page(HeaderMap::from_iter([(header::IF_NONE_MATCH, tag)])).await;
        assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
        let script = asset(extract::Path("dashboard.js".into()), HeaderMap::new()).await;
        assert_eq!(header_of(&script, "content-type"), "text/javascript; charset=utf-8");
        let none = asset(extract::Path("../Cargo.toml".into()), HeaderMap::new()).await;
        assert_eq!(none.status(), StatusCode::NOT_FOUND);
    }

    /// Goal: the page loads nothing from elsewhere, and what it loads is here.
    #[test]
    fn the_page_names_files_of_its_own_alone() {
        let page = text(&PAGE);
        let named = page.split(['"', '\'']).filter(|word| word.starts_with('/'));
        for name in named.clone() {
            let file = name.strip_prefix("/assets/").unwrap();
            assert!(ASSETS.iter().any(|asset| asset.name == file), "{file}");
        }
        assert_eq!(named.count(), 3);
        assert!(!page.contains("http") && !page.contains("<style") && !page.contains("style="));
        let [script, style, ..] = &ASSETS;
        assert!(!text(style).contains("url(") && !text(style).contains("@import"));
        // Names of kinds of markup, which nobody fetches.
        let script = text(script).replace("http://www.w3.org/", "");
        assert!(!script.contains("http://") && !script.contains("https://"));
        for word in ["eval(", "new Function", "document.write", "insertAdjacentHTML", "DOMParser"] {
            assert!(!script.contains(word), "{word}");
        }
    }

    fn digests(dir: &Path, named: &str, found: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = format!("{named}/{}", path.file_name().unwrap().to_str().unwrap());
            if path.is_dir() {
                if !name.ends_with("/node_modules") {
                    digests(&path, &name, found);
                }
                continue;
            }
            let digest = Sha256::digest(fs::read(&path).unwrap());
            found.insert(name, digest.iter().map(|byte| format!("{byte:02x}")).collect());
        }
    }

    /// Goal: nobody changes the sources and forgets the files that are made of them. Method: the build writes the
    /// digests of all that it reads, which is held against what there is.
    #[test]
    fn the_files_are_made_of_the_sources_that_are_there() {
        let written = fs::read_to_string(folder().join("assets/sources.sha256")).unwrap();
        let written: BTreeMap<String, String> = written
            .lines()
            .filter_map(|line| line.split_once("  "))
            .map(|(digest, name)| (name.to_owned(), digest.to_owned()))
            .collect();
        let mut found = BTreeMap::new();
        digests(&folder().join("web"), "web", &mut found);
        for name in written.keys().filter(|name| name.starts_with("../")) {
            let digest = Sha256::digest(fs::read(folder().join(name)).unwrap());
            found.insert(name.clone(), digest.iter().map(|byte| format!("{byte:02x}")).collect());
        }
        assert_eq!(written, found, "crates/aha-daemon/web/build makes the dashboard anew");
    }

    /// The dashboard's types are made of this file. `UPDATE_EXPECT=1` writes it anew.
    #[test]
    fn the_sources_know_the_api_as_it_is() {
        let path = folder().join("web/openapi.json");
        let document = serde_json::to_string_pretty(&crate::api::document()).unwrap() + "\n";
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            fs::write(&path, &document).unwrap();
        }
        let known = fs::read_to_string(&path).unwrap_or_default();
        assert!(known == document, "write web/openapi.json anew, then run web/build");
    }
}
