//! `objective` of an `rl` stage: the keys of [`aha_learn::objective::ObjectiveFile`].

use aha_learn::objective::{Objective, ObjectiveFile};

use super::foreign;
use super::reader::{Field, Key, Reader};
use super::source::{Node, Value};
use super::write::Out;

impl Field for Objective {
    fn expects() -> String {
        "a table".into()
    }

    fn read(node: &Node, path: &str, reader: &mut Reader<'_>, base: Self) -> Self {
        let Value::Table(entries) = &node.value else {
            reader.wrong_type(node, path, "a table");
            return base;
        };
        let names = foreign::field_names::<ObjectiveFile>(&[]);
        foreign::refuse_unknown(entries, &names, path, reader);
        let table = foreign::good_keys::<ObjectiveFile>(entries, &names, &[], path, reader);
        let file: ObjectiveFile = foreign::read(table).unwrap_or_default();
        match file.resolve(Some(reader.completion_len_tokens_max)) {
            Ok(objective) => objective,
            Err(problems) => {
                for problem in problems {
                    // A clip bound may have been set through `clip`.
                    let is_written = entries.iter().any(|entry| entry.key == problem.key);
                    let key = match problem.key {
                        "clip_low" | "clip_high" if !is_written => "clip",
                        key => key,
                    };
                    let path = format!("{path}.{key}");
                    if reader.is_good(&path) {
                        let message =
                            format!("`{path}` must be {}, got {}", problem.must, problem.got);
                        let hint = foreign::remedy(&problem.must.to_string(), &problem.got);
                        reader.report_at(&path, message, Some(hint));
                    }
                }
                base
            }
        }
    }

    fn write(&self) -> Option<Out> {
        Some(foreign::write(self))
    }

    fn keys(&self) -> Vec<Key> {
        foreign::field_names::<ObjectiveFile>(&[]).iter().map(|name| foreign::key(name)).collect()
    }
}
