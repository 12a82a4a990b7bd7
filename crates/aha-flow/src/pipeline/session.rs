//! Queries planned by DataFusion, and what it says of bad ones in our words.

use datafusion::common::{DataFusionError, SchemaError};
use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;

use super::catalogue::{Column, SqlProblem};
use super::problem::suggest;

/// The tables that a query names, its own `WITH` excepted; they need not exist.
pub fn tables_of(state: &SessionState, sql: &str) -> Result<Vec<String>, SqlProblem> {
    let dialect = state.config_options().sql_parser.dialect;
    let statement = state.sql_to_statement(sql, &dialect).map_err(|e| problem_of(&e))?;
    let references = state.resolve_table_references(&statement).map_err(|e| problem_of(&e))?;
    Ok(references.iter().map(|reference| reference.table().to_owned()).collect())
}

/// The columns that a query gives. Only queries are planned: nothing that writes or changes settings.
pub fn schema_of(state: &SessionState, sql: &str) -> Result<Vec<Column>, SqlProblem> {
    let plan = futures::executor::block_on(state.create_logical_plan(sql));
    let plan = plan.map_err(|e| problem_of(&e))?;
    if let LogicalPlan::Ddl(_)
    | LogicalPlan::Dml(_)
    | LogicalPlan::Copy(_)
    | LogicalPlan::Statement(_) = plan
    {
        return Err(SqlProblem {
            message: "expected a query, got a statement that changes something".into(),
            hint: Some("a stage's query starts with SELECT or WITH".into()),
            ..SqlProblem::default()
        });
    }
    let fields = plan.schema().fields().iter();
    Ok(fields
        .map(|field| Column {
            name: field.name().clone(),
            type_name: field.data_type().to_string(),
            nullable: field.is_nullable(),
        })
        .collect())
}

/// DataFusion's error as a problem of the query's text.
pub fn problem_of(error: &DataFusionError) -> SqlProblem {
    let span = error.diagnostic().and_then(|diagnostic| diagnostic.span);
    let place = |at: u64| u32::try_from(at).ok().filter(|at| *at > 0);
    let (line, column) =
        span.map_or((None, None), |span| (place(span.start.line), place(span.start.column)));
    match error.find_root() {
        DataFusionError::SQL(parser, _) => {
            let (message, line, column) = split_place(&parser.to_string());
            SqlProblem { message, line, column, hint: None }
        }
        DataFusionError::SchemaError(schema, _) => match &**schema {
            SchemaError::FieldNotFound { field, valid_fields } => {
                let names: Vec<&str> = valid_fields.iter().map(|column| column.name()).collect();
                SqlProblem {
                    message: format!("there is no column `{}`", field.name()),
                    hint: Some(suggest(field.name(), &names, "the columns are")),
                    line,
                    column,
                }
            }
            other => SqlProblem { message: plain(&other.to_string()), hint: None, line, column },
        },
        other => SqlProblem { message: plain(&other.strip_backtrace()), hint: None, line, column },
    }
}

/// The parser's message without the place that it ends in, and the place.
fn split_place(message: &str) -> (String, Option<u32>, Option<u32>) {
    let message = message.trim_start_matches("sql parser error: ");
    let Some((text, place)) = message.rsplit_once(" at Line: ") else {
        return (plain(message), None, None);
    };
    let Some((line, column)) = place.split_once(", Column: ") else {
        return (plain(message), None, None);
    };
    (plain(text), line.trim().parse().ok(), column.trim().parse().ok())
}

/// The first line, without the kind of error in front and with a small letter at the start.
fn plain(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default().trim_end_matches('.');
    let kinds = ["Error during planning: ", "Schema error: ", "This feature is not implemented: "];
    let line = kinds.iter().fold(line, |line, kind| line.strip_prefix(kind).unwrap_or(line));
    let mut chars = line.chars();
    match chars.next() {
        Some(first) if chars.as_str().starts_with(|c: char| c.is_lowercase()) => {
            first.to_lowercase().chain(chars).collect()
        }
        _ => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parsers_place_is_split_from_its_message() {
        let message = "sql parser error: Expected: an expression, found: EOF at Line: 2, Column: 9";
        let expected = ("expected: an expression, found: EOF".to_owned(), Some(2), Some(9));
        assert_eq!(split_place(message), expected);
        assert_eq!(split_place("Odd"), ("odd".to_owned(), None, None));
    }
}
