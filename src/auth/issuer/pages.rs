//! The development issuer's pages. All text in them is ours.

use super::USERS;

const STYLE: &str = "
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { display: grid; place-items: center; min-height: 100vh; margin: 0; }
main { width: min(22rem, 90vw); padding: 2rem; border: 1px solid #8884; border-radius: 12px; }
h1 { font-size: 1.25rem; margin: 0 0 .5rem; }
p { margin: 0 0 1.25rem; opacity: .75; }
button { display: block; width: 100%; padding: .7rem; margin-top: .6rem; font: inherit;
  border: 1px solid #8886; border-radius: 8px; background: #8881; color: inherit; cursor: pointer; }
button:hover, button:focus-visible { border-color: #36c; outline: 2px solid #36c; }
";

fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title>\
         <style>{STYLE}</style></head><body><main><h1>{title}</h1>{body}</main></body></html>"
    )
}

/// One button per person; posts to the page's own address.
pub fn sign_in_page() -> String {
    let buttons: String = USERS
        .iter()
        .map(|user| format!("<button name=\"user\" value=\"{user}\">{user}</button>"))
        .collect();
    page(
        "Development sign-in",
        &format!(
            "<p>This provider is part of <code>--dev</code>. It has no passwords: choose who you \
             are.</p><form method=\"post\">{buttons}</form>"
        ),
    )
}

/// Says what is wrong with a request.
pub fn error_page(what: &str) -> String {
    page("This sign-in cannot go on", &format!("<p>{what}</p>"))
}

/// For a browser that has nowhere to go back to.
pub fn signed_out_page() -> String {
    page("Signed out", "<p>You can close this page.</p>")
}
