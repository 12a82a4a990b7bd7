//! The page of the command line: what `--help` prints, command by command.

use super::NOTE;
use super::markdown::section_link;

/// Columns of a help text.
const WIDTH: usize = 100;

/// The page.
pub fn page() -> String {
    let mut aha = aha::command().term_width(WIDTH);
    aha.build();
    let names: Vec<String> = aha
        .get_subcommands()
        .map(|command| command.get_name().to_owned())
        .filter(|name| name != "help")
        .collect();
    let mut text = format!("# The command line\n\n{NOTE}\n\n## Contents\n\n");
    for name in &names {
        let heading = format!("aha {name}");
        let about = aha.find_subcommand(name).and_then(clap::Command::get_about);
        let about = about.map(ToString::to_string).unwrap_or_default();
        text.push_str(&format!("- {}: {about}\n", section_link(&heading, &heading)));
    }
    text.push_str(&section("aha", &mut aha));
    for name in &names {
        if let Some(command) = aha.find_subcommand_mut(name) {
            text.push_str(&section(&format!("aha {name}"), command));
        }
    }
    text
}

fn section(heading: &str, command: &mut clap::Command) -> String {
    let help = command.render_long_help().to_string();
    let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
    format!("\n## {heading}\n\n```text\n{}\n```\n", lines.join("\n").trim_end())
}
