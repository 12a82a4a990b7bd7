//! How often a schema's parts would be looked at again for an answer, counted without looking.
//!
//! A schema that refers to itself may look at each part of an answer more than once: with `anyOf` of two kinds
//! of nodes, twice for every level around it, which is a million times at twenty levels. The count takes each
//! pair of a schema's part and an answer's part once. It is what validation costs at most: it counts parts
//! that validation may leave out.

use std::collections::HashMap;

use serde_json::Value;

/// What the count found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cost {
    /// So many looks at a pair of parts that were looked at before, at most.
    Again(f64),
    /// The schema refers to itself on the spot, without end.
    Endless,
}

/// Counts for one schema.
pub struct Counter<'a> {
    root: &'a Value,
    /// By the addresses of both parts; none while the pair is being counted.
    known: HashMap<(*const Value, *const Value), Option<f64>>,
}

impl<'a> Counter<'a> {
    /// For that schema.
    pub fn new(root: &'a Value) -> Self {
        Self { root, known: HashMap::new() }
    }

    /// The looks that an answer takes beyond one for each pair of parts.
    pub fn cost(mut self, answer: &Value) -> Cost {
        match self.looks(self.root, answer) {
            Some(looks) => Cost::Again(looks - self.known.len() as f64),
            None => Cost::Endless,
        }
    }

    fn looks(&mut self, schema: &'a Value, answer: &Value) -> Option<f64> {
        let Value::Object(keys) = schema else { return Some(0.0) };
        let pair = (std::ptr::from_ref(schema), std::ptr::from_ref(answer));
        if let Some(known) = self.known.get(&pair) {
            return *known;
        }
        self.known.insert(pair, None);
        let mut looks = 1.0;
        for (key, value) in keys {
            looks += self.of_keyword(key, value, answer)?;
        }
        self.known.insert(pair, Some(looks));
        Some(looks)
    }

    fn of_keyword(&mut self, key: &str, value: &'a Value, answer: &Value) -> Option<f64> {
        match key {
            "$ref" | "$dynamicRef" | "$recursiveRef" => {
                let target = value.as_str().and_then(|address| target(self.root, address));
                self.looks(target.unwrap_or(self.root), answer)
            }
            "allOf" | "anyOf" | "oneOf" => {
                self.of_all(value.as_array().map(Vec::as_slice).unwrap_or_default(), answer)
            }
            "not" | "if" | "then" | "else" => self.looks(value, answer),
            "dependentSchemas" | "dependencies" => {
                let schemas = value.as_object().into_iter().flat_map(serde_json::Map::values);
                schemas.map(|schema| self.looks(schema, answer)).sum()
            }
            "properties" => {
                let (Some(schemas), Some(members)) = (value.as_object(), answer.as_object()) else {
                    return Some(0.0);
                };
                let each =
                    schemas.iter().filter_map(|(name, schema)| Some((schema, members.get(name)?)));
                each.map(|(schema, member)| self.looks(schema, member)).sum()
            }
            "patternProperties" => {
                let schemas = value.as_object().into_iter().flat_map(serde_json::Map::values);
                schemas.map(|schema| self.of_children(schema, answer)).sum()
            }
            "items" | "prefixItems" if value.is_array() => {
                let schemas = value.as_array().into_iter().flatten();
                let items = answer.as_array().into_iter().flatten();
                schemas.zip(items).map(|(schema, item)| self.looks(schema, item)).sum()
            }
            "items" | "contains" | "additionalItems" | "unevaluatedItems" if answer.is_array() => {
                self.of_children(value, answer)
            }
            "additionalProperties" | "unevaluatedProperties" if answer.is_object() => {
                self.of_children(value, answer)
            }
            _ => Some(0.0),
        }
    }

    fn of_all(&mut self, schemas: &'a [Value], answer: &Value) -> Option<f64> {
        schemas.iter().map(|schema| self.looks(schema, answer)).sum()
    }

    fn of_children(&mut self, schema: &'a Value, answer: &Value) -> Option<f64> {
        match answer {
            Value::Array(items) => items.iter().map(|item| self.looks(schema, item)).sum(),
            Value::Object(members) => {
                members.values().map(|member| self.looks(schema, member)).sum()
            }
            _ => Some(0.0),
        }
    }
}

/// The part of a schema at an address within it, `#/$defs/node` or `#name`.
fn target<'a>(root: &'a Value, address: &str) -> Option<&'a Value> {
    let fragment = address.strip_prefix('#')?;
    if fragment.is_empty() || fragment.starts_with('/') {
        return root.pointer(&fragment.replace("%24", "$").replace("%25", "%"));
    }
    anchored(root, fragment)
}

fn anchored<'a>(schema: &'a Value, name: &str) -> Option<&'a Value> {
    match schema {
        Value::Object(keys) => {
            let is_it = ["$anchor", "$dynamicAnchor"]
                .iter()
                .any(|key| keys.get(*key).and_then(Value::as_str) == Some(name));
            if is_it { Some(schema) } else { keys.values().find_map(|part| anchored(part, name)) }
        }
        Value::Array(parts) => parts.iter().find_map(|part| anchored(part, name)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cost(schema: &Value, answer: &Value) -> Cost {
        Counter::new(schema).cost(answer)
    }

    #[test]
    fn a_schema_without_choices_looks_at_each_part_once() {
        let schema = json!({ "type": "array", "items": { "type": "integer" } });
        assert_eq!(Counter::new(&schema).looks(&schema, &json!([1, 2, 3])), Some(4.0));
        assert_eq!(cost(&schema, &json!([1, 2, 3])), Cost::Again(0.0));
        assert_eq!(cost(&schema, &json!(5)), Cost::Again(0.0));
    }

    #[test]
    fn choices_that_refer_to_themselves_double_with_every_level() {
        let schema = json!({ "items": { "anyOf": [{ "$ref": "#" }, { "$ref": "#" }] } });
        let mut answer = json!([1]);
        let Cost::Again(mut before) = cost(&schema, &answer) else { panic!("endless") };
        assert!(before >= 1.0, "{before}");
        for _ in 0..60 {
            answer = json!([answer]);
            let Cost::Again(again) = cost(&schema, &answer) else { panic!("endless") };
            assert!(again >= 2.0 * before, "{again}");
            before = again;
        }
    }

    #[test]
    fn references_are_found_by_path_and_by_name() {
        let schema = json!({
            "$ref": "#/$defs/a",
            "$defs": { "a": { "items": { "$ref": "#b" } }, "b": { "$anchor": "b", "items": {} } }
        });
        // The whole, `a`, and for the item the reference, `b` and both numbers.
        assert_eq!(Counter::new(&schema).looks(&schema, &json!([[1, 2]])), Some(6.0));
        assert_eq!(cost(&json!({ "$ref": "#" }), &json!(1)), Cost::Endless);
        let circle = json!({
            "$ref": "#/$defs/a",
            "$defs": { "a": { "$ref": "#/$defs/b" }, "b": { "$ref": "#/$defs/a" } }
        });
        assert_eq!(cost(&circle, &json!({})), Cost::Endless);
    }
}
