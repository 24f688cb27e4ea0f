//! Places where a test makes the process die.
//!
//! What a crash leaves behind must be whole (a pairing code is used and one device has its token, or it
//! is not used and nobody has one). A kill from outside meets the few microseconds between two
//! statements by luck only, so a test names the place by `EDGECLOUD_FAIL_POINT` and the process ends
//! there by itself. A Cargo feature would make the tested binary another one and split every build in
//! two; so this is in debug builds, which nobody runs in earnest, and release builds have an empty
//! function in its place.

/// Ends the process at once, as a kill or a power cut would, when the environment names this place.
#[cfg(debug_assertions)]
pub fn reach(place: &str) {
    #[expect(
        clippy::disallowed_methods,
        reason = "it is no setting: `config show` has nothing to tell of it"
    )]
    let named = std::env::var("EDGECLOUD_FAIL_POINT");
    if named.is_ok_and(|named| named == place) {
        std::process::abort();
    }
}

/// Does nothing.
#[cfg(not(debug_assertions))]
pub fn reach(_place: &str) {}
