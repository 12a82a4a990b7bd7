//! Conversations out of a column `messages`: turns, and which of them the model learns to write.

use aha_model::chat_template::Message;
use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::datatypes::DataType;
use arrow::json::LineDelimitedWriter;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::pipeline::LossOn;
use crate::prompts;

/// The column.
pub const MESSAGES: &str = "messages";

/// Keys of a message that say whether it is learned; a template doesn't see them.
const FLAGS: [&str; 2] = ["train", "weight"];

/// A conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversation {
    /// Its turns, flags taken out.
    pub messages: Vec<Message>,
    /// The flag of each, where it has one.
    flags: Vec<Option<bool>>,
    /// As JSON, flags included.
    pub json: String,
}

impl Conversation {
    /// Reads a list of messages.
    pub fn of_json(value: &Value) -> Result<Conversation> {
        let Value::Array(list) = value else {
            return Err(Error::input(format!("`messages` is {}: expected a list", kind_of(value))));
        };
        let (mut messages, mut flags) = (Vec::new(), Vec::new());
        for (idx, value) in list.iter().enumerate() {
            let within = |error: Error| error.within(&format!("messages[{idx}]"));
            let (message, flag) = message(value).map_err(within)?;
            messages.push(message);
            flags.push(flag);
        }
        if messages.is_empty() {
            return Err(Error::input_with("`messages` is empty", "leave such rows out"));
        }
        Ok(Conversation { messages, flags, json: value.to_string() })
    }

    /// The turns that the loss is over: places in `messages`.
    pub fn turns(&self, loss_on: LossOn) -> Vec<usize> {
        let mut turns = (0..self.messages.len()).filter(|&idx| self.messages[idx].is_assistants());
        match loss_on {
            LossOn::Completion | LossOn::All => turns.collect(),
            LossOn::Last => turns.next_back().into_iter().collect(),
            LossOn::Flagged => turns.filter(|&idx| self.flags[idx].unwrap_or(true)).collect(),
        }
    }

    /// Whether a flag says that the model isn't to learn one of the assistant's turns.
    pub fn has_masked_turn(&self) -> bool {
        self.flags.contains(&Some(false))
    }

    /// What the assistant says in these turns, with an empty line between them.
    pub fn text_of(&self, turns: &[usize]) -> String {
        let texts: Vec<&str> = turns.iter().map(|&idx| &*self.messages[idx].content).collect();
        texts.join("\n\n")
    }
}

/// The conversations of a batch, in order, as JSON; none for a row without one.
pub fn conversations(batch: &RecordBatch) -> Result<Vec<Option<Value>>> {
    let column = batch
        .column_by_name(MESSAGES)
        .ok_or_else(|| Error::bug("conversations are read of a batch without `messages`"))?;
    match column.data_type() {
        DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..) => {
            of_lists(column)
        }
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Dictionary(..) => {
            of_texts(batch)
        }
        other => Err(Error::input_with(
            format!("column `messages` is {other}: expected a list of structs, or its JSON text"),
            "each message has the fields `role` and `content`",
        )),
    }
}

fn of_lists(column: &ArrayRef) -> Result<Vec<Option<Value>>> {
    let refused = |error: arrow::error::ArrowError| {
        Error::input(format!("column `messages` can't be read: {error}"))
    };
    let batch = RecordBatch::try_from_iter_with_nullable(
        [(MESSAGES, column, true)]
            .map(|(name, column, is_nullable)| (name, ArrayRef::clone(column), is_nullable)),
    )
    .map_err(refused)?;
    let mut writer = LineDelimitedWriter::new(Vec::new());
    writer.write(&batch).and_then(|()| writer.finish()).map_err(refused)?;
    let lines = writer.into_inner();
    let rows = serde_json::Deserializer::from_slice(&lines).into_iter::<Map<String, Value>>();
    let values = rows
        .map(|row| row.map(|mut row| row.remove(MESSAGES)))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| Error::bug(format!("rows written as JSON are none: {error}")))?;
    if values.len() != column.len() {
        return Err(Error::bug("rows written as JSON are not as many"));
    }
    Ok(values)
}

fn of_texts(batch: &RecordBatch) -> Result<Vec<Option<Value>>> {
    let texts = prompts::required_text(batch, MESSAGES)?;
    let read = |text: &str| {
        serde_json::from_str(text)
            .map_err(|error| Error::input(format!("column `messages` is not JSON: {error}")))
    };
    texts.iter().map(|text| text.map(read).transpose()).collect()
}

fn message(value: &Value) -> Result<(Message, Option<bool>)> {
    let Value::Object(fields) = value else {
        return Err(Error::input(format!(
            "a message is {}: expected `role` and `content`",
            kind_of(value)
        )));
    };
    let role = match fields.get("role") {
        Some(Value::String(role)) => role,
        other => return Err(not_text("role", other)),
    };
    let content = match fields.get("content") {
        Some(Value::String(content)) => content.as_str(),
        // A call of a tool may come without a word.
        None | Some(Value::Null) if fields.get("tool_calls").is_some_and(Value::is_array) => "",
        other => return Err(not_text("content", other)),
    };
    let flag = flag(fields)?;
    if flag == Some(true) && role != "assistant" {
        return Err(Error::input_with(
            format!("a message of role `{role}` is flagged to be learned"),
            "only the assistant's turns can be: the model writes no others",
        ));
    }
    let mut message = Message::new(role, content);
    let is_more = |key: &str| !["role", "content"].contains(&key) && !FLAGS.contains(&key);
    message.more = fields
        .iter()
        .filter(|(key, value)| is_more(key) && !value.is_null())
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    Ok((message, flag))
}

/// What `train` or `weight` says.
fn flag(fields: &Map<String, Value>) -> Result<Option<bool>> {
    let mut found: Option<bool> = None;
    for key in FLAGS {
        let flag = match fields.get(key) {
            None | Some(Value::Null) => continue,
            Some(Value::Bool(flag)) if key == "train" => *flag,
            Some(Value::Number(number)) if key == "weight" && number.as_f64() == Some(0.0) => false,
            Some(Value::Number(number)) if key == "weight" && number.as_f64() == Some(1.0) => true,
            Some(other) => {
                let must = if key == "train" { "true or false" } else { "0 or 1" };
                return Err(Error::input(format!("`{key}` is {other}: expected {must}")));
            }
        };
        if found.is_some_and(|before| before != flag) {
            return Err(Error::input_with(
                "`train` and `weight` of a message contradict each other",
                "keep one of the two",
            ));
        }
        found = Some(flag);
    }
    Ok(found)
}

fn not_text(key: &str, found: Option<&Value>) -> Error {
    match found {
        None | Some(Value::Null) => Error::input_with(
            format!("a message has no `{key}`"),
            "each message has the fields `role` and `content`",
        ),
        Some(value) => {
            Error::input(format!("`{key}` of a message is {}: expected a text", kind_of(value)))
        }
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::StringArray;
    use arrow::json::ReaderBuilder;
    use serde_json::json;

    use super::*;

    fn read(value: &Value) -> Result<Conversation> {
        Conversation::of_json(value)
    }

    fn turns(value: &Value) -> [Vec<usize>; 3] {
        let read = read(value).unwrap();
        [LossOn::Completion, LossOn::Last, LossOn::Flagged].map(|loss_on| read.turns(loss_on))
    }

    #[test]
    fn the_turns_that_are_learned_are_those_of_the_setting() {
        let says = |role: &str| json!({"role": role, "content": role});
        let flagged = |key: &str, flag: Value| {
            let mut says = says("assistant");
            says[key] = flag;
            says
        };
        let plain =
            [says("system"), says("user"), says("assistant"), says("tool"), says("assistant")];
        assert_eq!(turns(&json!(plain)), [vec![2, 4], vec![4], vec![2, 4]]);
        for (key, off, on) in [
            ("train", json!(false), json!(true)),
            ("weight", json!(0), json!(1)),
            ("weight", json!(0.0), json!(1.0)),
        ] {
            let all = json!([flagged(key, off), says("user"), flagged(key, on), says("assistant")]);
            assert_eq!(turns(&all), [vec![0, 2, 3], vec![3], vec![2, 3]]);
            assert!(read(&all).unwrap().has_masked_turn());
        }
        let none = json!([says("user"), flagged("train", Value::Null)]);
        assert_eq!(turns(&none), [vec![1], vec![1], vec![1]]);
        assert!(!read(&none).unwrap().has_masked_turn());
        assert!(turns(&json!([says("user")])).iter().all(Vec::is_empty));
    }

    #[test]
    fn further_fields_are_the_templates_and_flags_are_not() {
        let call = json!([{"function": {"name": "f"}}]);
        let value = json!([{"role": "assistant", "content": null, "tool_calls": call, "train": true, "name": null}]);
        let message = read(&value).unwrap().messages.remove(0);
        assert_eq!((message.content.as_str(), message.more.len()), ("", 1));
        assert_eq!(message.more["tool_calls"], call);
    }

    #[test]
    fn what_is_no_conversation_is_refused_with_its_place() {
        let cases = [
            (json!({"role": "user"}), "is an object: expected a list"),
            (json!([]), "is empty"),
            (json!([{"role": "user", "content": "x"}, "y"]), "messages[1]: a message is a text"),
            (json!([{"content": "x"}]), "messages[0]: a message has no `role`"),
            (json!([{"role": "user", "content": null}]), "messages[0]: a message has no `content`"),
            (
                json!([{"role": "user", "content": [{"type": "text"}]}]),
                "`content` of a message is a list",
            ),
            (json!([{"role": "user", "content": "x", "train": true}]), "of role `user` is flagged"),
            (
                json!([{"role": "user", "content": "x", "weight": 0.5}]),
                "`weight` is 0.5: expected 0 or 1",
            ),
            (json!([{"role": "user", "content": "x", "train": 1}]), "`train` is 1: expected true"),
            (
                json!([{"role": "assistant", "content": "x", "train": true, "weight": 0}]),
                "contradict",
            ),
        ];
        for (value, message) in cases {
            let error = read(&value).unwrap_err();
            assert!(matches!(error, Error::Input { .. }), "{error}");
            assert!(error.to_string().contains(message), "{error}");
        }
    }

    #[test]
    fn lists_of_structs_and_their_json_text_are_the_same() {
        let rows = [
            json!({"messages": [{"role": "user", "content": "é"}, {"role": "assistant", "content": "b", "train": false}]}),
            json!({"messages": null}),
            json!({"messages": [{"role": "user", "content": "c"}]}),
        ];
        let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
        let schema = arrow::json::reader::infer_json_schema(lines.as_bytes(), None).unwrap().0;
        let mut reader = ReaderBuilder::new(Arc::new(schema)).build(lines.as_bytes()).unwrap();
        let lists = reader.next().unwrap().unwrap();
        let texts = rows
            .iter()
            .map(|row| Some(&row["messages"]).filter(|m| !m.is_null()).map(Value::to_string));
        let column: ArrayRef = Arc::new(texts.collect::<StringArray>());
        let texts = RecordBatch::try_from_iter_with_nullable([(MESSAGES, column, true)]).unwrap();
        let (lists, texts) = (conversations(&lists).unwrap(), conversations(&texts).unwrap());
        assert_eq!(lists, texts);
        assert!(lists.len() == 3 && lists[1].is_none(), "{lists:?}");
        assert_eq!(lists[0].as_ref().unwrap(), &rows[0]["messages"]);
    }
}
