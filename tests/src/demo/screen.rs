//! How the demo looks: aligned, short, coloured on a terminal and plain in a pipe.
#![allow(clippy::print_stdout, reason = "this is the program that talks to a person")]

use std::{io::IsTerminal as _, time::Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Widest cell of a table.
const WIDEST: usize = 72;

/// The terminal.
#[derive(Debug)]
pub(super) struct Screen {
    colours: bool,
}

/// A step that takes a while.
#[derive(Debug)]
pub(super) struct Step<'a> {
    screen: &'a Screen,
    what: String,
    started: Instant,
    spinner: ProgressBar,
}

impl Step<'_> {
    /// It is done; `result` says more.
    pub(super) fn done(self, result: &str) {
        self.spinner.finish_and_clear();
        let seconds = self.started.elapsed().as_secs_f64();
        let (screen, what) = (self.screen, &self.what);
        println!("  {} {what}  {}", screen.green("✓"), screen.dim(&format!("{result}  {seconds:.1} s")));
    }
}

impl Screen {
    /// Colours where a person looks and has not asked for none.
    pub(super) fn new() -> Self {
        Self { colours: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() }
    }

    /// Whether somebody is watching.
    pub(super) fn is_attended(&self) -> bool {
        std::io::stderr().is_terminal()
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub(super) fn green(&self, text: &str) -> String {
        self.paint("32", text)
    }

    pub(super) fn dim(&self, text: &str) -> String {
        self.paint("2", text)
    }

    /// The first line.
    pub(super) fn title(&self, text: &str) {
        println!("{}\n", self.paint("1", text));
    }

    /// A section.
    pub(super) fn heading(&self, text: &str) {
        println!("\n{}", self.paint("1;36", text));
    }

    /// A line of a section.
    pub(super) fn line(&self, text: &str) {
        println!("  {text}");
    }

    /// Something that is wrong.
    pub(super) fn bad(&self, text: &str) {
        println!("  {}", self.paint("31", text));
    }

    /// A statement that is run.
    pub(super) fn query(&self, text: &str) {
        println!("  {}", self.paint("33", &format!("SQL> {text}")));
    }

    /// Somebody else's output.
    pub(super) fn block(&self, text: &str) {
        for line in text.lines() {
            println!("  {line}");
        }
    }

    /// The last line.
    pub(super) fn verdict(&self, good: bool, text: &str) {
        println!("\n{}", self.paint(if good { "1;32" } else { "1;31" }, text));
    }

    /// Rows of cells below names (none: no head line); numbers to the right.
    pub(super) fn table(&self, rows: &[Vec<String>], names: &[String]) {
        let columns = rows.iter().map(Vec::len).chain([names.len()]).max().unwrap_or(0);
        let rows: Vec<Vec<String>> =
            rows.iter().map(|row| row.iter().map(|cell| clipped(cell)).collect()).collect();
        let of = |column: usize| rows.iter().filter_map(move |row| row.get(column));
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                of(column).chain(names.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
            })
            .collect();
        let numeric: Vec<bool> = (0..columns).map(|column| of(column).all(|cell| is_number(cell))).collect();
        let line = |row: &[String]| {
            let cells = row.iter().zip(&widths).zip(&numeric).map(|((cell, width), numeric)| match numeric {
                true => format!("{cell:>width$}"),
                false => format!("{cell:<width$}"),
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        if !names.is_empty() {
            println!("  {}", self.dim(&line(names)));
        }
        for row in &rows {
            println!("  {}", line(row));
        }
    }

    /// Begins a step.
    pub(super) fn step(&self, what: &str) -> Step<'_> {
        let spinner = ProgressBar::new_spinner().with_message(what.to_owned());
        spinner.enable_steady_tick(std::time::Duration::from_millis(100));
        Step { screen: self, what: what.to_owned(), started: Instant::now(), spinner }
    }

    /// A bar over `total` binlogs.
    pub(super) fn bar(&self, total: u64) -> ProgressBar {
        let target =
            if self.is_attended() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(total), target);
        if let Ok(style) = ProgressStyle::with_template(
            "  {spinner:.green} playing {bar:32.green/dim} {human_pos}/{human_len} binlogs  {msg}",
        ) {
            bar.set_style(style.progress_chars("━━─"));
        }
        bar
    }
}

fn clipped(cell: &str) -> String {
    match cell.char_indices().nth(WIDEST) {
        Some((end, _)) => format!("{}…", &cell[..end]),
        None => cell.to_owned(),
    }
}

fn is_number(cell: &str) -> bool {
    !cell.is_empty() && cell.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | ',' | '-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clips_and_tells_numbers() {
        assert_eq!(clipped(&"é".repeat(WIDEST + 9)).chars().count(), WIDEST + 1);
        assert_eq!(clipped("short"), "short");
        assert!(is_number("1,234.5") && is_number("-3") && !is_number("") && !is_number("2026 ms"));
    }
}
