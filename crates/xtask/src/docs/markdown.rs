//! Pieces of Markdown, as GitHub reads it.

/// Columns of a wrapped paragraph.
const WIDTH: usize = 110;

/// The anchor of a heading.
pub fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}

/// A link to a section of the same page.
pub fn section_link(text: &str, heading: &str) -> String {
    format!("[{text}](#{})", anchor(heading))
}

/// Text on one line.
pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A table with these columns.
pub fn table<const N: usize>(
    head: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let line = |cells: [String; N]| {
        let cells = cells.map(|cell| one_line(&cell).replace('|', "\\|"));
        format!("| {} |\n", cells.join(" | "))
    };
    let mut text = line(head.map(str::to_owned));
    text.push_str(&line(head.map(|_| "---".to_owned())));
    text.extend(rows.into_iter().map(line));
    text
}

/// A paragraph, broken between words.
pub fn paragraph(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.last_mut().expect("there is always a line");
        if last.is_empty() {
            last.push_str(word);
        } else if last.chars().count() + 1 + word.chars().count() <= WIDTH {
            last.push(' ');
            last.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_stays_in_its_place() {
        let text = table(["a", "b"], [["x | y".to_owned(), "two\nlines".to_owned()]]);
        assert_eq!(text, "| a | b |\n| --- | --- |\n| x \\| y | two lines |\n");
    }

    #[test]
    fn anchors_are_githubs() {
        assert_eq!(anchor("`[[stage]] kind = \"sft\"`"), "stage-kind--sft");
        assert_eq!(anchor("`optimizer.schedule`"), "optimizerschedule");
        assert_eq!(anchor("`watchdogs` of `rl`"), "watchdogs-of-rl");
    }

    #[test]
    fn a_paragraph_is_broken_between_words() {
        let text = paragraph(&"word ".repeat(40));
        assert!(text.lines().all(|line| line.len() <= WIDTH && !line.ends_with(' ')), "{text}");
        assert_eq!(text.split_whitespace().count(), 40);
    }
}
