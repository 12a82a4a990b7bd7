//! Stderr, shared by progress bars and lines so that neither tears the other.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::text;

/// How often a bar's clock moves.
const TICK: Duration = Duration::from_millis(250);

/// Stderr. Cloning it clones the handle.
#[derive(Clone)]
pub struct Screen {
    bars: MultiProgress,
    is_live: bool,
}

impl Screen {
    /// Stderr as it is: with bars only where somebody looks.
    pub fn new() -> Screen {
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let is_live = io::stderr().is_terminal() && !is_dumb;
        Screen { bars: MultiProgress::new(), is_live }
    }

    /// Whether it is a terminal that bars can be drawn on.
    pub fn is_live(&self) -> bool {
        self.is_live
    }

    /// Writes lines, above any bars.
    pub fn line(&self, lines: &str) {
        self.write(format!("{}\n", text::lines(lines)).as_bytes());
    }

    /// Writes bytes that are safe to show.
    fn write(&self, bytes: &[u8]) {
        // Nobody reading what is said is no reason to stop.
        self.bars.suspend(|| drop(io::stderr().write_all(bytes)));
    }

    /// A bar of `len` steps below the others; a line without a bar where `len` is 0.
    pub fn bar(&self, len: u64) -> ProgressBar {
        if !self.is_live {
            return ProgressBar::hidden();
        }
        let template = match len {
            0 => "{prefix} {spinner} {msg}",
            _ => "{prefix} [{bar:30}] {pos}/{len} {msg}",
        };
        let bar = self.bars.add(ProgressBar::new(len));
        // A template that doesn't parse leaves the default style.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.enable_steady_tick(TICK);
        bar
    }

    /// A line below the others.
    pub fn note(&self) -> ProgressBar {
        if !self.is_live {
            return ProgressBar::hidden();
        }
        let line = self.bars.add(ProgressBar::new_spinner());
        if let Ok(style) = ProgressStyle::with_template("  {msg}") {
            line.set_style(style);
        }
        line
    }
}

/// Each write is one event of the log.
impl Write for &Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let event = String::from_utf8_lossy(bytes);
        Screen::write(self, format!("{}\n", text::one_line(event.trim_end())).as_bytes());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a result to stdout.
pub fn print(bytes: impl AsRef<[u8]>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes.as_ref())?;
    out.flush()
}

/// Writes a result to stdout as a line of JSON.
pub fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    Ok(print(text::json(value)? + "\n")?)
}
