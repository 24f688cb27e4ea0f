//! Fuzz targets that run with the other tests, on stable Rust.
//!
//! A target is a function of bytes that a peer could have sent: it must not panic, and asserts what has
//! to hold of any bytes. One line in the tests of a module adds one,
//!
//! ```ignore
//! fuzz_target!(event_tail, |bytes| { ... });
//! ```
//!
//! beside a few good inputs in `tests/corpus/event_tail/`. A run replays that folder and then a fixed
//! number of mutated inputs, the same ones each time. To search further:
//!
//! ```sh
//! EDGECLOUD_FUZZ_SECONDS=600 EDGECLOUD_FUZZ_SEED=7 cargo test --lib event_tail
//! ```
//!
//! An input that fails is written into the folder, so that every later run begins with it.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue};

/// Mutated inputs of a run without a time.
const INPUTS: u64 = 3_000;
/// Longest input, in bytes.
const MAX_INPUT: usize = 8 * 1024;
/// Mutations of one input at most.
const MAX_MUTATIONS: u64 = 6;
/// What parsers care about.
const TOKENS: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b",",
    b";",
    b"=",
    b":",
    b"\"",
    b"'",
    b"\\",
    b"/",
    b"//",
    b"..",
    b".",
    b"%",
    b"%2f",
    b"%00",
    b"@",
    b"#",
    b"?",
    b"[",
    b"]",
    b"{",
    b"}",
    b"-1",
    b"0x5",
    b"1e9",
    b"18446744073709551616",
    b"\xff",
    b"\xc3\xbc",
    b"null",
    b"Edgecloud-",
    b"edgecloud=",
];
/// Numbers at the edges of their types.
const EDGES: &[u64] = &[
    0,
    1,
    125,
    126,
    127,
    128,
    255,
    256,
    0x7fff,
    0x8000,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX,
];

/// Makes a test of a target.
macro_rules! fuzz_target {
    ($name:ident, $target:expr) => {
        #[test]
        fn $name() {
            $crate::fuzzing::run(stringify!($name), $target);
        }
    };
}
pub(crate) use fuzz_target;

/// Runs a target over its corpus and over mutations of it.
///
/// # Panics
/// When an input fails; says where it was written, and the seed.
pub fn run(name: &str, target: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/corpus")
        .join(name);
    let corpus = corpus(&folder);
    for (file, input) in &corpus {
        let outcome = catch_unwind(AssertUnwindSafe(|| target(input)));
        assert!(outcome.is_ok(), "{} fails", file.display());
    }
    let seed = knob("EDGECLOUD_FUZZ_SEED").unwrap_or(1);
    let until =
        knob("EDGECLOUD_FUZZ_SECONDS").map(|secs| Instant::now() + Duration::from_secs(secs));
    let mut mutator = Mutator(seed);
    let mut done = 0;
    while until.map_or(done < INPUTS, |until| Instant::now() < until) {
        done += 1;
        let input = mutator.input(&corpus);
        if catch_unwind(AssertUnwindSafe(|| target(&input))).is_err() {
            let file = folder.join(format!("failed-{seed}-{done}"));
            fs::write(&file, &input).expect("write the input that fails");
            panic!("{} fails, number {done} of seed {seed}", file.display());
        }
    }
}

/// The fields of lines `Name: value`; what is no field is left out.
pub fn fields(bytes: &[u8]) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n').take(100) {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let (name, value) = (parts.next().unwrap_or_default(), parts.next());
        if let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(name),
            HeaderValue::from_bytes(value.unwrap_or_default().trim_ascii()),
        ) {
            fields.append(name, value);
        }
    }
    fields
}

fn corpus(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    // The same order everywhere, so that a seed means the same.
    files.sort();
    assert!(
        !files.is_empty(),
        "put some good inputs into {}",
        folder.display()
    );
    let read = |file: PathBuf| {
        let input = fs::read(&file).expect("a readable input");
        (file, input)
    };
    files.into_iter().map(read).collect()
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long tests run is no setting of the product"
)]
fn knob(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().expect("a number"))
}

/// Makes inputs: splitmix64, which is good enough to choose what to break.
struct Mutator(u64);

impl Mutator {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        let limit = u64::try_from(limit.max(1)).unwrap_or(u64::MAX);
        usize::try_from(self.next() % limit).unwrap_or(0)
    }

    fn pick<'t, T: ?Sized>(&mut self, from: &[&'t T]) -> &'t T {
        from[self.below(from.len())]
    }

    fn input(&mut self, corpus: &[(PathBuf, Vec<u8>)]) -> Vec<u8> {
        let mut input = corpus[self.below(corpus.len())].1.clone();
        for _ in 0..=self.next() % MAX_MUTATIONS {
            self.mutate(&mut input, corpus);
            input.truncate(MAX_INPUT);
        }
        input
    }

    fn mutate(&mut self, input: &mut Vec<u8>, corpus: &[(PathBuf, Vec<u8>)]) {
        let at = self.below(input.len() + 1);
        let end = at + self.below(input.len() - at + 1);
        match self.below(8) {
            0 if at < input.len() => input[at] ^= 1 << self.below(8),
            1 if at < input.len() => input[at] = self.next().to_le_bytes()[0],
            2 => drop(input.drain(at..end)),
            3 => {
                let again = input[at..end].to_vec();
                input.splice(at..at, again);
            }
            4 => {
                let token = self.pick(TOKENS);
                input.splice(at..at, token.iter().copied());
            }
            5 => {
                let other = &corpus[self.below(corpus.len())].1;
                let from = self.below(other.len() + 1);
                input.splice(at.., other[from..].iter().copied());
            }
            6 => {
                let number = EDGES[self.below(EDGES.len())].to_be_bytes();
                let width = 1 << self.below(4);
                for (byte, new) in input[at..].iter_mut().zip(&number[8 - width..]) {
                    *byte = *new;
                }
            }
            _ => {
                let number = EDGES[self.below(EDGES.len())].to_string();
                input.splice(at..end, number.into_bytes());
            }
        }
    }
}

#[test]
fn a_seed_means_the_same_inputs_and_others_mean_others() {
    let corpus = [(PathBuf::new(), b"GET / HTTP/1.1\r\n".to_vec())];
    let inputs = |seed| {
        let mut mutator = Mutator(seed);
        (0..500)
            .map(|_| mutator.input(&corpus))
            .collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(inputs(1), inputs(1));
    assert_ne!(inputs(1), inputs(2));
    assert!(inputs(1).len() > 300, "few inputs are alike");
}
