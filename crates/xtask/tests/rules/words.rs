//! Words that are not to be in the repository.

use crate::scan::{Class, classify};
use crate::{files, none, read};

/// What code must not have, each with what to do about it.
const IN_CODE: [(&str, &str); 4] = [
    ("allow(", "an exception is `expect(…, reason = \"…\")`"),
    ("todo!(", "do it, or leave it out"),
    ("unimplemented!(", "do it, or leave it out"),
    ("dbg!(", "use `tracing`"),
];

/// What comments must not have.
const IN_COMMENTS: [&str; 3] = ["TODO", "FIXME", "XXX"];

#[test]
fn no_file_has_a_banned_word() {
    let mut complaints = Vec::new();
    for path in files(".rs") {
        let classes = classify(&read(&path));
        for (idx, line) in classes.split(|(c, _)| *c == '\n').enumerate() {
            let only = |wanted| -> String {
                line.iter().filter(|(_, class)| *class == wanted).map(|(c, _)| *c).collect()
            };
            let (code, comment, line) = (only(Class::Code), only(Class::Comment), idx + 1);
            let is_attribute =
                code.trim_start().starts_with("#[") || code.trim_start().starts_with("#![");
            for (word, remedy) in IN_CODE.iter().filter(|(word, _)| code.contains(word)) {
                if *word != "allow(" || is_attribute {
                    complaints.push(format!("{path}:{line}: `{word}`: {remedy}"));
                }
            }
            for word in IN_COMMENTS.iter().filter(|word| comment.contains(*word)) {
                complaints.push(format!("{path}:{line}: `{word}`: do it, or file an issue"));
            }
        }
    }
    none(&complaints);
}
