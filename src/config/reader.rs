//! Collects values from their sources, hands them out typed, and collects mistakes.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use toml::{Table, Value};

use super::keys::{KEYS, SECRETS, closest};
use super::{Config, ConfigError, ConfigErrors, Flags};

const ENV_PREFIX: &str = "EDGECLOUD__";
const ENV_FILE: &str = "EDGECLOUD_CONFIG";
const DAY_SECS: u64 = 86_400;
/// Largest configuration or secret file, in bytes.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// The values of all sources, and the mistakes so far.
pub struct Reader {
    values: BTreeMap<String, Value>,
    errors: Vec<ConfigError>,
    shown: Vec<(&'static str, String)>,
}

impl Reader {
    /// A reader without values, for the sections that a role does not use.
    pub fn unused() -> Self {
        Self {
            values: BTreeMap::new(),
            errors: Vec::new(),
            shown: Vec::new(),
        }
    }

    pub fn new(flags: &Flags, env: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut reader = Self {
            values: BTreeMap::new(),
            errors: Vec::new(),
            shown: Vec::new(),
        };
        let env: BTreeMap<String, String> = env.into_iter().collect();
        let file = flags
            .config
            .clone()
            .or_else(|| env.get(ENV_FILE).map(PathBuf::from));
        if let Some(file) = file {
            reader.read_file(&file);
        }
        for (name, value) in &env {
            if let Some(rest) = name.strip_prefix(ENV_PREFIX) {
                reader.read_variable(name, rest, value, &env);
            } else if let Some(rest) = name.strip_prefix("EDGECLOUD_")
                && rest.contains("__")
            {
                // Nobody else's variables look like this.
                let message = format!("there is no such setting; did you mean {ENV_PREFIX}{rest}?");
                reader.mistake(name, message);
            }
        }
        reader
    }

    fn read_file(&mut self, path: &Path) {
        let shown = path.display().to_string();
        let text = match read_bounded(path) {
            Ok(text) => text,
            Err(error) => return self.mistake(&shown, format!("cannot be read: {error}")),
        };
        match text.parse::<Table>() {
            Ok(table) => self.flatten("", table),
            Err(error) => self.mistake(
                &shown,
                format!("is not TOML: {}", error.to_string().trim_end()),
            ),
        }
    }

    fn flatten(&mut self, prefix: &str, table: Table) {
        for (name, value) in table {
            let key = if prefix.is_empty() {
                name
            } else {
                format!("{prefix}.{name}")
            };
            match value {
                Value::Table(inner) if !KEYS.contains(&key.as_str()) => self.flatten(&key, inner),
                value => self.put(&key.clone(), key, value),
            }
        }
    }

    fn read_variable(
        &mut self,
        name: &str,
        rest: &str,
        value: &str,
        env: &BTreeMap<String, String>,
    ) {
        let key = rest.to_lowercase().replace("__", ".");
        let secret = key
            .strip_suffix("_file")
            .filter(|key| SECRETS.contains(key));
        let Some(key) = secret else {
            return self.put(name, key, Value::String(value.to_owned()));
        };
        if name
            .strip_suffix("_FILE")
            .is_some_and(|plain| env.contains_key(plain))
        {
            return self.mistake(
                name,
                "is given, and so is the variable without _FILE; only one of them is allowed",
            );
        }
        match read_bounded(Path::new(value)) {
            Ok(text) => self.put(
                name,
                key.to_owned(),
                Value::String(text.trim_end().to_owned()),
            ),
            Err(error) => self.mistake(name, format!("the file {value:?} cannot be read: {error}")),
        }
    }

    /// `place` is how the source names the key.
    fn put(&mut self, place: &str, key: String, value: Value) {
        if KEYS.contains(&key.as_str()) {
            self.values.insert(key, value);
            return;
        }
        let hint = closest(&key)
            .map(|known| format!("; did you mean {known}?"))
            .unwrap_or_default();
        self.mistake(place, format!("there is no such setting{hint}"));
    }

    pub fn mistake(&mut self, key: &str, message: impl Into<String>) {
        self.errors.push(ConfigError {
            key: key.to_owned(),
            message: message.into(),
        });
    }

    /// A value that is there but not allowed.
    pub fn refuse(&mut self, key: &'static str, value: impl Display, allowed: &str) {
        let value = match SECRETS.contains(&key) {
            true => "the value".to_owned(),
            false => format!("{value:?}", value = value.to_string()),
        };
        self.mistake(key, format!("{value} is not allowed; allowed: {allowed}"));
    }

    pub fn has(&self, key: &'static str) -> bool {
        self.values.contains_key(key)
    }

    fn text_of(&self, key: &'static str) -> Option<String> {
        self.values.get(key).map(|value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        })
    }

    fn show(&mut self, key: &'static str, value: impl Display) {
        let text = value.to_string();
        let value = match SECRETS.contains(&key) {
            true => "\"***\"".to_owned(),
            false if text.parse::<i64>().is_ok() || text.parse::<bool>().is_ok() => text,
            false => Value::String(text).to_string(),
        };
        self.shown.push((key, value));
    }

    /// Shows a text in the place of what was shown, because it is a default or no secret after all.
    pub fn show_text(&mut self, key: &'static str, text: impl Display) {
        self.shown.retain(|(shown, _)| *shown != key);
        let text = Value::String(text.to_string());
        self.shown.push((key, text.to_string()));
    }

    /// A value by its `FromStr`, if the key is set.
    pub fn optional<T: FromStr + Display>(
        &mut self,
        key: &'static str,
        allowed: &str,
    ) -> Option<T> {
        let text = self.text_of(key)?;
        match text.parse::<T>() {
            Ok(value) => {
                self.show(key, &value);
                Some(value)
            }
            Err(_) => {
                self.refuse(key, text, allowed);
                None
            }
        }
    }

    /// A value by its `FromStr`, or the default.
    pub fn value<T: FromStr + Display>(
        &mut self,
        key: &'static str,
        default: T,
        allowed: &str,
    ) -> T {
        if self.has(key) {
            return self.optional(key, allowed).unwrap_or(default);
        }
        self.show(key, &default);
        default
    }

    pub fn addr(&mut self, key: &'static str, default: &str) -> SocketAddr {
        let default = default.parse().expect("the defaults are addresses");
        self.value(key, default, "an address and a port, as in 127.0.0.1:3721")
    }

    pub fn count(
        &mut self,
        key: &'static str,
        default: usize,
        range: RangeInclusive<usize>,
    ) -> usize {
        let allowed = format!("a whole number from {} to {}", range.start(), range.end());
        let value = self.value(key, default, &allowed);
        if !range.contains(&value) {
            self.refuse(key, value, &allowed);
        }
        value
    }

    pub fn duration(
        &mut self,
        key: &'static str,
        default: Duration,
        range: RangeInclusive<Duration>,
    ) -> Duration {
        let shown = |duration: Duration| match duration.as_secs() {
            // humantime counts in months and years, which nobody would write.
            secs if secs >= DAY_SECS && secs % DAY_SECS == 0 => format!("{}d", secs / DAY_SECS),
            _ => humantime::format_duration(duration).to_string(),
        };
        let allowed = format!(
            "a duration from {} to {}, as in \"15s\" or \"2h\"",
            shown(*range.start()),
            shown(*range.end())
        );
        let default = humantime::Duration::from(default);
        let value = *self.value(key, default, &allowed);
        if !range.contains(&value) {
            self.refuse(key, shown(value), &allowed);
        }
        value
    }

    /// A list of texts: an array, or one text with commas.
    pub fn list(&mut self, key: &'static str, default: &[&str]) -> Vec<String> {
        let list = match self.values.get(key) {
            None => default.iter().map(|item| (*item).to_owned()).collect(),
            Some(Value::Array(items)) if items.iter().all(Value::is_str) => items
                .iter()
                .filter_map(|item| item.as_str().map(str::to_owned))
                .collect(),
            Some(Value::String(text)) => text
                .split(',')
                .map(|item| item.trim().to_owned())
                .filter(|item| !item.is_empty())
                .collect(),
            Some(other) => {
                let other = other.to_string();
                self.refuse(key, other, "a list of texts");
                Vec::new()
            }
        };
        let shown = match SECRETS.contains(&key) {
            true => "\"***\"".to_owned(),
            false => Value::from(list.clone()).to_string(),
        };
        self.shown.push((key, shown));
        list
    }

    /// A table of texts.
    pub fn table(&mut self, key: &'static str) -> BTreeMap<String, String> {
        let table = match self.values.get(key) {
            None => return BTreeMap::new(),
            Some(Value::Table(table)) => Some(table.clone()),
            Some(Value::String(text)) => {
                format!("v = {text}")
                    .parse::<Table>()
                    .ok()
                    .and_then(|mut table| {
                        table
                            .remove("v")
                            .and_then(|value| value.as_table().cloned())
                    })
            }
            Some(_) => None,
        };
        let texts = table.and_then(|table| {
            let text = |(name, value): (String, Value)| Some((name, value.as_str()?.to_owned()));
            table
                .into_iter()
                .map(text)
                .collect::<Option<BTreeMap<_, _>>>()
        });
        let Some(texts) = texts else {
            self.mistake(
                key,
                "is not allowed: a table of texts, as in { prompt = \"login\" }",
            );
            return BTreeMap::new();
        };
        let shown = texts
            .iter()
            .map(|(name, value)| format!("{name} = {}", Value::String(value.clone())));
        let shown = format!("{{ {} }}", shown.collect::<Vec<_>>().join(", "));
        self.shown.push((key, shown));
        texts
    }

    pub fn secret(&mut self, key: &'static str) -> Option<SecretString> {
        let text = self.text_of(key)?;
        self.show(key, "");
        if text.is_empty() {
            self.mistake(key, "is empty; leave the key out instead");
            return None;
        }
        Some(SecretString::from(text))
    }

    /// One or several secrets of at least `min` bytes.
    pub fn secrets(&mut self, key: &'static str, min: usize) -> Vec<SecretString> {
        if !self.has(key) {
            return Vec::new();
        }
        let secrets: Vec<_> = self
            .list(key, &[])
            .into_iter()
            .map(SecretString::from)
            .collect();
        if secrets.is_empty()
            || secrets
                .iter()
                .any(|secret| secret.expose_secret().len() < min)
        {
            let allowed = format!("at least {min} bytes, one secret or a list of them");
            self.refuse(key, "", &allowed);
        }
        secrets
    }

    /// The result: `config`, or all mistakes.
    pub fn finish(self, mut config: Config) -> Result<Config, ConfigErrors> {
        if !self.errors.is_empty() {
            return Err(ConfigErrors(self.errors));
        }
        let mut section = "";
        for (key, value) in &self.shown {
            let (of, name) = key.rsplit_once('.').expect("every key has a section");
            if of != section {
                let gap = if section.is_empty() { "" } else { "\n" };
                config.shown.push_str(&format!("{gap}[{of}]\n"));
                section = of;
            }
            config.shown.push_str(&format!("{name} = {value}\n"));
        }
        Ok(config)
    }
}

/// A file of at most 1 MiB.
pub fn read_bounded(path: &Path) -> std::io::Result<String> {
    if fs::metadata(path)?.len() > MAX_FILE_BYTES {
        return Err(std::io::Error::other("it is larger than 1 MiB"));
    }
    fs::read_to_string(path)
}
