//! The sheet of the drill: one line a step, what was checked, figures and time; and whether all held.
//! Called by the binaries `drill` and `demo`; it prints and judges nothing itself.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// What a step notes while it runs.
#[derive(Debug, Default)]
pub struct Notes {
    figures: Vec<String>,
    is_told: bool,
}

impl Notes {
    /// A figure for the table; said aloud at once when the story is told to a person.
    pub fn figure(&mut self, figure: impl Display) {
        let figure = figure.to_string();
        self.tell(&figure);
        self.figures.push(figure);
    }

    /// A word on what happens now, for a person only.
    pub fn tell(&self, word: impl Display) {
        if self.is_told {
            println!("      {word}");
        }
    }
}

/// A finished step.
#[derive(Debug)]
struct Line {
    number: usize,
    name: &'static str,
    checked: &'static str,
    figures: String,
    took: Duration,
    has_held: bool,
}

/// All steps of one run.
#[derive(Debug)]
pub struct Sheet {
    head: String,
    lines: Vec<Line>,
    wanted: usize,
    is_told: bool,
}

impl Sheet {
    /// A sheet for `wanted` steps under a head that says where they run; `is_told` prints a narration while they do.
    #[must_use]
    pub fn new(head: &str, wanted: usize, is_told: bool) -> Self {
        Self {
            head: head.to_owned(),
            lines: Vec::new(),
            wanted,
            is_told,
        }
    }

    /// Runs a step, which has a number and a name, and writes its line. False if it did not hold.
    pub async fn step<F>(
        &mut self,
        (number, name): (usize, &'static str),
        checked: &'static str,
        step: F,
    ) -> bool
    where
        F: AsyncFnOnce(&mut Notes) -> anyhow::Result<()>,
    {
        if self.is_told {
            println!("\n  {number:>2}  {name}");
        } else {
            eprintln!("step {number}: {name}");
        }
        let began = Instant::now();
        let mut notes = Notes {
            figures: Vec::new(),
            is_told: self.is_told,
        };
        let outcome = step(&mut notes).await;
        let has_held = outcome.is_ok();
        if let Err(error) = outcome {
            notes.figures.push(format!("FAILED: {error:#}"));
            eprintln!("step {number} failed: {error:#}");
        }
        let figures = notes.figures.join("; ");
        self.lines.push(Line {
            number,
            name,
            checked,
            figures,
            took: began.elapsed(),
            has_held,
        });
        has_held
    }

    /// True if every wanted step ran and held.
    #[must_use]
    pub fn has_held(&self) -> bool {
        self.held() == self.wanted
    }

    /// Prints the table and the closing line.
    pub fn print(&self) {
        println!();
        println!("{}", self.head);
        for line in &self.lines {
            let mark = if line.has_held { "held  " } else { "FAILED" };
            println!(
                "{:>2} {mark} {:>6.1} s  {}",
                line.number,
                line.took.as_secs_f64(),
                line.name
            );
            print_folded("checked: ", line.checked);
            print_folded("figures: ", &line.figures);
        }
        if self.lines.len() < self.wanted {
            println!(
                "   {} steps were not reached",
                self.wanted - self.lines.len()
            );
        }
        println!("drill: {} of {} steps held", self.held(), self.wanted);
    }

    fn held(&self) -> usize {
        self.lines.iter().filter(|line| line.has_held).count()
    }
}

/// Prints text folded at words, under a label.
fn print_folded(label: &str, text: &str) {
    const WIDTH: usize = 96;
    let indent = " ".repeat(10);
    let mut line = format!("{indent}{label}");
    for word in text.split_whitespace() {
        if line.len() + word.len() > WIDTH {
            println!("{}", line.trim_end());
            line = format!("{indent}{}", " ".repeat(label.len()));
        }
        line.push_str(word);
        line.push(' ');
    }
    println!("{}", line.trim_end());
}
