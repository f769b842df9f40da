//! Logging: `tracing` to stderr.

use std::env;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;

use nix::sys::stat::fstat;
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::{MakeWriter, fmt};
use tracing_subscriber::util::SubscriberInitExt;

/// Why logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The level is not one.
    #[error(
        "`{level}` from {origin} is no log level: error, warn, info, debug, trace, or directives such as `info,mobile_io=debug`"
    )]
    BadLevel {
        /// The text given.
        level: String,
        /// `--log` or the variable.
        origin: String,
    },
    /// Somebody has set up logging already.
    #[error("logging was started twice")]
    Twice,
}

/// Starts logging to stderr. `flag` is what `--log` gave; else the variable `env` (`MOBILE_LOG`, `HOME_RELAY_LOG`)
/// decides; else `info`.
///
/// Colours only on a terminal; no time of day under journald, which has its own.
///
/// # Errors
/// When the level is not one, or logging was started before.
pub fn init(flag: Option<&str>, env: &str) -> Result<(), LogError> {
    let variable = env::var_os(env).map(|value| value.to_string_lossy().into_owned());
    let filter = filter(flag, env, variable.as_deref())?;
    let journal = env::var("JOURNAL_STREAM").is_ok_and(|stream| is_stream(io::stderr(), &stream));
    let style = Style { colours: io::stderr().is_terminal(), time: !journal };
    subscriber(filter, style, io::stderr).try_init().map_err(|_| LogError::Twice)
}

/// How lines look.
#[derive(Clone, Copy)]
struct Style {
    colours: bool,
    time: bool,
}

/// Whether this is the stream systemd names by device and inode. Its variable alone says nothing: everything a
/// service starts inherits it, with its output wherever it likes.
fn is_stream(fd: impl AsFd, stream: &str) -> bool {
    fstat(fd).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

fn filter(flag: Option<&str>, env: &str, variable: Option<&str>) -> Result<EnvFilter, LogError> {
    let (text, origin) = match (flag, variable) {
        (Some(flag), _) => (flag, "--log"),
        // Set to nothing is a way to say "not set".
        (None, Some(value)) if !value.trim().is_empty() => (value, env),
        _ => ("info", "the default"),
    };
    let bad = || LogError::BadLevel { level: text.to_owned(), origin: origin.to_owned() };
    // A lone word would be taken for a module's name, and `--log debgu` would silence everything.
    let is_word = text.chars().all(|char| char.is_ascii_alphanumeric() || char == '_');
    if text.is_empty() || (is_word && text.parse::<LevelFilter>().is_err()) {
        return Err(bad());
    }
    EnvFilter::builder().with_regex(false).parse(text).map_err(|_| bad())
}

fn subscriber<W>(filter: EnvFilter, style: Style, writer: W) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = fmt().with_env_filter(filter).with_ansi(style.colours).with_target(false).with_writer(writer);
    if style.time { Box::new(lines.finish()) } else { Box::new(lines.without_time().finish()) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines(filter: EnvFilter, style: Style) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        tracing::subscriber::with_default(subscriber(filter, style, move || writer.clone()), || {
            tracing::info!(uplink = "wlan0", "handover");
            tracing::debug!("detail");
        });
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn the_flag_wins_over_the_variable_and_info_is_the_default() {
        let level = |flag, variable| filter(flag, "MOBILE_LOG", variable).unwrap().to_string();
        assert_eq!(level(Some("debug"), Some("warn")), "debug");
        assert_eq!(level(None, Some("warn,mobile_io=trace")), "mobile_io=trace,warn");
        assert_eq!(level(None, Some(" ")), "info");
        assert_eq!(level(None, None), "info");
    }

    #[test]
    fn a_bad_level_names_where_it_came_from() {
        for (flag, variable, expected) in [
            (Some("debgu"), None, "`debgu` from --log is no log level: "),
            (None, Some("info,mobile_io=loud"), "`info,mobile_io=loud` from MOBILE_LOG is no log level: "),
            (Some(""), None, "`` from --log is no log level: "),
        ] {
            let error = filter(flag, "MOBILE_LOG", variable).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn the_journal_gets_plain_lines_and_a_terminal_colours_and_the_time() {
        let info = || filter(None, "MOBILE_LOG", None).unwrap();
        let plain = lines(info(), Style { colours: false, time: false });
        assert_eq!(plain.trim(), r#"INFO handover uplink="wlan0""#);
        let bright = lines(info(), Style { colours: true, time: true });
        assert!(bright.contains('\u{1b}') && bright.contains("T") && bright.contains("Z"), "{bright}");
        let detailed = lines(filter(Some("debug"), "", None).unwrap(), Style { colours: false, time: false });
        assert!(detailed.contains("DEBUG detail"), "{detailed}");
    }

    #[test]
    fn the_journal_is_known_by_its_stream_and_not_by_the_variable_alone() {
        let (ours, other) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let stat = fstat(&ours).unwrap();
        let told = format!("{}:{}", stat.st_dev, stat.st_ino);
        assert!(is_stream(&ours, &told));
        assert!(!is_stream(&other, &told) && !is_stream(&ours, "") && !is_stream(&ours, "8:"));
    }
}
