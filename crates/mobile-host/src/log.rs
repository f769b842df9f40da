//! Sends `tracing` events to stderr, for a terminal, a file or the journal.

use std::env;
use std::fmt;
use std::io::{self, IsTerminal, Write as _};
use std::os::fd::AsFd;

use nix::sys::stat::fstat;
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter, layer};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::{LookupSpan, Registry};
use tracing_subscriber::util::SubscriberInitExt;

/// The reason why logging cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The log level is invalid.
    #[error(
        "invalid log level `{level}` from {origin}: use error, warn, info, debug, trace, or directives such as `info,mobile_transport=debug`"
    )]
    BadLevel {
        /// The invalid text that was given as the level.
        level: String,
        /// The source of the text: `--log` or the environment variable.
        origin: String,
    },
    /// A logger has already been installed.
    #[error("logging has already been started")]
    Twice,
}

/// Starts logging to stderr.
///
/// The level is `flag` (of `--log`), else the environment variable `env` (`MOBILE_LOG` or
/// `HOME_RELAY_LOG`), else `info`.
///
/// Colours are used on a terminal only. If stderr leads to the journal, each line begins with its
/// priority as in sd-daemon(3), without level and time, which the journal stores itself.
///
/// # Errors
/// When the level is invalid, or when logging was started before.
pub fn init(flag: Option<&str>, env: &str) -> Result<(), LogError> {
    let variable = env::var_os(env).map(|value| value.to_string_lossy().into_owned());
    let filter = filter(flag, env, variable.as_deref())?;
    let style = match is_journal() {
        true => Style::Journal,
        false => Style::Lines { colours: io::stderr().is_terminal() },
    };
    subscriber(filter, style, io::stderr).try_init().map_err(|_| LogError::Twice)
}

/// Prints the error that ends a program to stderr, with error priority if the journal reads it.
pub fn print_fatal(message: &str) {
    let text = if is_journal() { prioritised(Level::ERROR, message) } else { format!("{message}\n") };
    // If stderr is closed, the message cannot be shown anywhere.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// The format of log lines.
#[derive(Clone, Copy)]
enum Style {
    /// Lines that begin with time and level, in colour if `colours` is true.
    Lines { colours: bool },
    /// Lines that begin with a priority, which the journal reads (sd-daemon(3)).
    Journal,
}

/// Returns whether stderr is connected to systemd's journal.
fn is_journal() -> bool {
    env::var("JOURNAL_STREAM").is_ok_and(|stream| is_stream(io::stderr(), &stream))
}

/// Returns whether `fd` is the file that `stream`, the value of `JOURNAL_STREAM`, identifies by
/// device and inode.
///
/// The presence of the variable alone is not sufficient, because every child of a service inherits
/// the variable, even if its output is redirected.
fn is_stream(fd: impl AsFd, stream: &str) -> bool {
    fstat(fd).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

fn filter(flag: Option<&str>, env: &str, variable: Option<&str>) -> Result<Targets, LogError> {
    let (text, origin) = match (flag, variable) {
        (Some(flag), _) => (flag, "--log"),
        // An empty variable counts as unset.
        (None, Some(value)) if !value.trim().is_empty() => (value, env),
        _ => ("info", "the default"),
    };
    let bad = || LogError::BadLevel { level: text.to_owned(), origin: origin.to_owned() };
    // `Targets` would parse a single word as a module name, so `--log debgu` would disable all
    // logging.
    let is_word = text.chars().all(|char| char.is_ascii_alphanumeric() || char == '_');
    if text.is_empty() || (is_word && text.parse::<LevelFilter>().is_err()) {
        return Err(bad());
    }
    text.parse().map_err(|_| bad())
}

fn subscriber<W>(filter: Targets, style: Style, writer: W) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = layer().with_target(false).with_writer(writer);
    match style {
        Style::Lines { colours } => Box::new(Registry::default().with(filter).with(lines.with_ansi(colours))),
        Style::Journal => {
            let plain = lines.with_ansi(false).with_level(false).without_time();
            Box::new(Registry::default().with(filter).with(plain.map_event_format(Prioritised)))
        }
    }
}

/// Formats log events with `F` and prefixes each line with its priority, for the journal.
struct Prioritised<F>(F);

impl<S, N, F> FormatEvent<S, N> for Prioritised<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut text = String::new();
        self.0.format_event(context, Writer::new(&mut text), event)?;
        writer.write_str(&prioritised(*event.metadata().level(), &text))
    }
}

/// Prefixes each line of `text` with the priority of `level`, because each line becomes a separate
/// entry in the journal.
fn prioritised(level: Level, text: &str) -> String {
    let priority = match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    };
    text.lines().map(|line| format!("<{priority}>{line}\n")).collect()
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

    fn lines(filter: Targets, style: Style) -> String {
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
        assert_eq!(level(None, Some("warn,mobile_transport=trace")), "mobile_transport=trace,warn");
        assert_eq!(level(None, Some(" ")), "info");
        assert_eq!(level(None, None), "info");
    }

    #[test]
    fn an_invalid_level_is_reported_with_its_source() {
        for (flag, variable, expected) in [
            (Some("debgu"), None, "invalid log level `debgu` from --log: "),
            (
                None,
                Some("info,mobile_transport=loud"),
                "invalid log level `info,mobile_transport=loud` from MOBILE_LOG: ",
            ),
            (Some(""), None, "invalid log level `` from --log: "),
        ] {
            let error = filter(flag, "MOBILE_LOG", variable).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn a_terminal_gets_colours_and_a_file_none() {
        let info = || filter(None, "MOBILE_LOG", None).unwrap();
        let plain = lines(info(), Style::Lines { colours: false });
        assert!(plain.contains("Z ") && plain.trim().ends_with(r#"INFO handover uplink="wlan0""#), "{plain}");
        let bright = lines(info(), Style::Lines { colours: true });
        assert!(bright.contains('\u{1b}') && bright.contains("T") && bright.contains("Z"), "{bright}");
    }

    #[test]
    fn the_journal_gets_priorities_without_level_and_time() {
        let all = filter(Some("trace"), "", None).unwrap();
        assert_eq!(lines(all, Style::Journal), "<6>handover uplink=\"wlan0\"\n<7>detail\n");
        assert_eq!(prioritised(Level::WARN, "one\ntwo\n"), "<4>one\n<4>two\n");
        assert_eq!(prioritised(Level::ERROR, "mobile: no"), "<3>mobile: no\n");
    }

    #[test]
    fn the_journal_is_recognised_by_its_stream() {
        let (ours, other) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let stat = fstat(&ours).unwrap();
        let stream_id = format!("{}:{}", stat.st_dev, stat.st_ino);
        assert!(is_stream(&ours, &stream_id));
        assert!(!is_stream(&other, &stream_id) && !is_stream(&ours, "") && !is_stream(&ours, "8:"));
    }
}
