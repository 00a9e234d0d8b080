//! The manual page of a program: one page that tells every command with its options, made from the parser.
//!
//! Called by [`crate::cli`]. `clap_mangen` writes the head and the common options; its list of commands
//! points to a page for each of them, which nobody installs.

use std::io::{self, Write};

use clap::{Arg, Command};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

const EXIT_STATUS: [(&str, &str); 4] = [
    ("0", "Done."),
    ("64", "Wrong command line, configuration or token."),
    ("69", "Something that is needed cannot be reached."),
    ("1", "Anything else; standard error says what to do."),
];

/// Writes the page (roff).
///
/// # Errors
/// `out` cannot be written.
pub(crate) fn write(mut command: Command, out: &mut dyn Write) -> io::Result<()> {
    command.build();
    let man = Man::new(command.clone());
    man.render_title(out)?;
    man.render_name_section(out)?;
    man.render_synopsis_section(out)?;
    man.render_description_section(out)?;
    man.render_options_section(out)?;
    let mut page = Roff::new();
    page.control("SH", ["COMMANDS"]);
    commands(&mut command, &mut page);
    page.control("SH", ["EXIT STATUS"]);
    for (code, meaning) in EXIT_STATUS {
        page.control("TP", []);
        page.text([bold(code)]);
        page.text([roman(meaning)]);
    }
    if let Some(more) = command.get_after_help() {
        page.control("SH", ["NOTES"]);
        as_it_is(&more.to_string(), &mut page);
    }
    page.to_writer(out)?;
    man.render_version_section(out)
}

/// Those that do something, with their whole path; what only holds others is passed through.
fn commands(command: &mut Command, page: &mut Roff) {
    for one in command.get_subcommands_mut() {
        if one.is_hide_set() || one.get_name() == "help" {
            continue;
        }
        match one.has_subcommands() {
            true => commands(one, page),
            false => describe(one, page),
        }
    }
}

fn describe(command: &mut Command, page: &mut Roff) {
    let usage = command.render_usage().to_string();
    let usage = usage
        .trim_start_matches("Usage: ")
        .replace(" [OPTIONS]", "");
    page.control("SS", [usage.as_str()]);
    if let Some(about) = command.get_long_about().or(command.get_about()) {
        page.text([roman(about.to_string())]);
    }
    let common = |arg: &Arg| arg.is_global_set() || arg.is_hide_set() || arg.get_id() == "help";
    for arg in command.get_arguments().filter(|arg| !common(arg)) {
        page.control("TP", []);
        page.text([bold(arg.to_string())]);
        page.text([roman(meaning(arg))]);
    }
    if let Some(more) = command.get_after_help() {
        page.control("PP", []);
        as_it_is(&more.to_string(), page);
    }
}

/// Examples: line by line.
fn as_it_is(text: &str, page: &mut Roff) {
    page.control("nf", []);
    page.text([roman(text)]);
    page.control("fi", []);
}

fn meaning(arg: &Arg) -> String {
    let help = arg.get_long_help().or(arg.get_help());
    let mut text = help.map(ToString::to_string).unwrap_or_default();
    let defaults: Vec<_> = arg
        .get_default_values()
        .iter()
        .map(|value| value.to_string_lossy())
        .collect();
    if !defaults.is_empty() && arg.get_action().takes_values() {
        text.push_str(&format!(" [default: {}]", defaults.join(" ")));
    }
    for value in arg.get_possible_values() {
        if let Some(help) = value.get_help() {
            text.push_str(&format!("; {}: {help}", value.get_name()));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser, Subcommand};

    use super::*;

    /// A program
    #[derive(Parser)]
    #[command(name = "thing", version)]
    struct Thing {
        #[command(subcommand)]
        _what: What,
    }

    #[derive(Subcommand)]
    enum What {
        /// Keys
        #[command(subcommand)]
        Keys(Keys),
        /// Print nothing
        #[command(hide = true)]
        Hidden,
    }

    #[derive(Subcommand)]
    enum Keys {
        /// Make another key
        #[command(after_help = "Example:\n  thing keys rotate owner")]
        Rotate {
            /// Which one
            role: String,
            /// How often
            #[arg(long, default_value_t = 3)]
            times: u8,
        },
    }

    #[test]
    fn every_command_stands_on_the_page_and_none_points_elsewhere() {
        let mut out = Vec::new();
        write(Thing::command(), &mut out).expect("written");
        let page = String::from_utf8(out).expect("text").replace('\\', "");
        for part in [
            "thing keys rotate <ROLE>",
            "Make another key",
            "Which one",
            "--times <TIMES>",
            "[default: 3]",
            "thing keys rotate owner",
            "EXIT STATUS",
        ] {
            assert!(page.contains(part), "{part} is missing in\n{page}");
        }
        assert!(
            !page.contains("Hidden") && !page.contains("thing-keys(1)"),
            "{page}"
        );
    }
}
