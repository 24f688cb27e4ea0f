//! The parameters with which the provider sends a browser back.

use url::form_urlencoded;

/// Longest query, in bytes.
const MAX_QUERY_BYTES: usize = 8 * 1024;

/// A query that no provider sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallbackError {
    /// A parameter is there twice (RFC 6749 §3.1).
    #[error("a parameter is there more than once")]
    Duplicate,
    /// The query is longer than anything a provider sends.
    #[error("the query is too long")]
    TooLong,
}

/// The parameters that matter.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct CallbackParams {
    /// What we sent.
    pub state: Option<String>,
    /// To be exchanged for tokens.
    pub code: Option<String>,
    /// The provider (RFC 9207).
    pub iss: Option<String>,
    /// The provider's error code, if it is one by its form.
    pub error: Option<String>,
}

impl CallbackParams {
    /// Reads a raw query.
    ///
    /// # Errors
    /// When a parameter is doubled or the query too long.
    pub fn parse(query: &str) -> Result<Self, CallbackError> {
        if query.len() > MAX_QUERY_BYTES {
            return Err(CallbackError::TooLong);
        }
        let mut params = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let slot = match &*name {
                "state" => &mut params.state,
                "code" => &mut params.code,
                "iss" => &mut params.iss,
                "error" => &mut params.error,
                _ => continue,
            };
            if slot.replace(value.into_owned()).is_some() {
                return Err(CallbackError::Duplicate);
            }
        }
        params.error = params.error.map(|error| match is_error_code(&error) {
            true => error,
            false => "an error".to_owned(),
        });
        Ok(params)
    }
}

/// The codes that exist are made of these; anything else is not repeated to anybody.
fn is_error_code(text: &str) -> bool {
    text.len() <= 64
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ol_18_doubled_parameters_are_refused() {
        for query in ["code=a&code=b", "state=a&code=b&state=a", "iss=a&iss=b"] {
            assert_eq!(CallbackParams::parse(query), Err(CallbackError::Duplicate));
        }
        let long = format!("code={}", "a".repeat(MAX_QUERY_BYTES));
        assert_eq!(CallbackParams::parse(&long), Err(CallbackError::TooLong));
    }

    #[test]
    fn ol_19_only_error_codes_are_repeated() {
        let error = |query| CallbackParams::parse(query).expect("no duplicates").error;
        assert_eq!(
            error("error=access_denied").as_deref(),
            Some("access_denied")
        );
        assert_eq!(error("error=%3Cscript%3E").as_deref(), Some("an error"));
    }
}
