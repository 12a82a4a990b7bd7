//! Reads the calls that mark rows from SQL.

use std::sync::Arc;

use arrow::datatypes::DataType;
use async_trait::async_trait;
use datafusion::catalog::Session;
use datafusion::common::{Column, DFSchema, ScalarValue};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::context::QueryPlanner;
use datafusion::logical_expr::planner::{
    PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning,
};
use datafusion::logical_expr::{Expr, Extension, LogicalPlan, LogicalPlanBuilder};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_planner::{DefaultPhysicalPlanner, PhysicalPlanner};
use datafusion::sql::sqlparser::ast::{self, FunctionArg, FunctionArgExpr, TableFactor};

use super::ngrams::LEN_TERMS_MAX;
use super::node::{Call, Mark, Marks};
use super::{MARK_DUPLICATES, TableFunction};
use crate::error::HINT;

/// Least threshold: texts that are less alike have next to nothing in common, and too many meet.
const THRESHOLD_MIN: f64 = 0.2;

/// Plans what DataFusion doesn't know.
#[derive(Debug)]
pub(crate) struct Planner;

#[async_trait]
impl QueryPlanner for Planner {
    async fn create_physical_plan(
        &self,
        plan: &LogicalPlan,
        session: &dyn Session,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let planner = DefaultPhysicalPlanner::with_extension_planners(vec![Arc::new(Marks)]);
        planner.create_physical_plan(plan, session).await
    }
}

/// Finds the calls after FROM.
#[derive(Debug)]
pub(crate) struct Calls;

impl RelationPlanner for Calls {
    fn plan_relation(
        &self,
        relation: TableFactor,
        context: &mut dyn RelationPlannerContext,
    ) -> Result<RelationPlanning> {
        let about = match &relation {
            TableFactor::Table { name, args: Some(_), .. } => called(name),
            _ => None,
        };
        let (about, alias, args) = match (about, relation) {
            (Some(about), TableFactor::Table { alias, args: Some(args), .. }) => {
                (about, alias, args)
            }
            (_, relation) => {
                refuse_unknown(&relation)?;
                return Ok(RelationPlanning::Original(Box::new(relation)));
            }
        };
        let mut arguments = Arguments::new(about, args.args)?;
        let mark = match about.name == MARK_DUPLICATES.name {
            true => duplicates(&mut arguments, context)?,
            false => contaminated(&mut arguments, context)?,
        };
        arguments.finish()?;
        let plan = LogicalPlan::Extension(Extension { node: Arc::new(mark) });
        Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(plan, alias))))
    }
}

/// Refuses a call of another name with a query in it: no other call reads one, and what DataFusion says of the query
/// leads astray.
fn refuse_unknown(relation: &TableFactor) -> Result<()> {
    let TableFactor::Table { name, args: Some(args), .. } = relation else { return Ok(()) };
    let is_query = |arg: &FunctionArg| {
        matches!(arg, FunctionArg::Unnamed(FunctionArgExpr::Expr(ast::Expr::Subquery(_))))
    };
    match args.args.iter().any(is_query) {
        true => Err(DataFusionError::Plan(format!("table function '{name}' not found"))),
        false => Ok(()),
    }
}

fn called(name: &ast::ObjectName) -> Option<TableFunction> {
    let name = name.to_string();
    super::reference().into_iter().find(|about| about.name.eq_ignore_ascii_case(&name))
}

fn duplicates(arguments: &mut Arguments, context: &mut dyn RelationPlannerContext) -> Result<Mark> {
    let rows = arguments.query("the rows", context)?;
    let id = arguments.column("the rows' id", &rows, context)?;
    let text = arguments.text("the rows' text", &rows, context)?;
    let threshold = arguments.next("the threshold")?;
    let threshold = match number(&threshold, context)? {
        Some(threshold) if (THRESHOLD_MIN..=1.0).contains(&threshold) => threshold,
        _ => {
            let what = format!("a threshold from {THRESHOLD_MIN} to 1, got `{threshold}`");
            return Err(arguments.expected(&what));
        }
    };
    let n = arguments.n(3, context)?;
    let keep = match arguments.named("keep") {
        Some(expr) => Some(arguments.column_of(expr, "the column to keep by", &rows, context)?),
        None => None,
    };
    let columns = [id, text].into_iter().chain(keep).collect();
    Mark::new(Call::Duplicates { threshold_bits: threshold.to_bits() }, n, vec![rows], columns)
}

fn contaminated(
    arguments: &mut Arguments,
    context: &mut dyn RelationPlannerContext,
) -> Result<Mark> {
    let rows = arguments.query("the rows", context)?;
    let text = arguments.text("the rows' text", &rows, context)?;
    let evaluation = arguments.query("the evaluation set", context)?;
    let schema = evaluation.schema();
    let is_text = schema.fields().get(1).is_some_and(|field| is_text(field.data_type()));
    if schema.fields().len() != 2 || !is_text {
        let what = "a query of an evaluation set with two columns, what names a text and the text";
        return Err(arguments.expected(what));
    }
    let n = arguments.n(13, context)?;
    Mark::new(Call::Contaminated, n, vec![rows, evaluation], vec![text])
}

/// The arguments of a call, taken one by one.
struct Arguments {
    about: TableFunction,
    positional: std::vec::IntoIter<ast::Expr>,
    named: Vec<(String, ast::Expr)>,
}

impl Arguments {
    fn new(about: TableFunction, args: Vec<FunctionArg>) -> Result<Arguments> {
        let (mut positional, mut named) = (Vec::new(), Vec::new());
        for arg in args {
            match arg {
                FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => positional.push(expr),
                FunctionArg::Named { name, arg: FunctionArgExpr::Expr(expr), .. } => {
                    named.push((name.value.to_lowercase(), expr));
                }
                FunctionArg::ExprNamed { name, arg: FunctionArgExpr::Expr(expr), .. } => {
                    named.push((name.to_string().to_lowercase(), expr));
                }
                arg => {
                    return Err(expected(about, &format!("arguments that are given, got `{arg}`")));
                }
            }
        }
        Ok(Arguments { about, positional: positional.into_iter(), named })
    }

    fn next(&mut self, what: &str) -> Result<ast::Expr> {
        self.positional.next().ok_or_else(|| self.expected(what))
    }

    fn named(&mut self, name: &str) -> Option<ast::Expr> {
        let idx = self.named.iter().position(|(known, _)| known == name)?;
        Some(self.named.remove(idx).1)
    }

    /// A query in parentheses. Its columns are the call's.
    fn query(
        &mut self,
        what: &str,
        context: &mut dyn RelationPlannerContext,
    ) -> Result<LogicalPlan> {
        let mut expr = self.next(&format!("a query for {what}"))?;
        while let ast::Expr::Nested(inner) = expr {
            expr = *inner;
        }
        let ast::Expr::Subquery(subquery) = expr else {
            let what =
                format!("a query in parentheses for {what}, (SELECT … FROM …), got `{expr}`");
            return Err(self.expected(&what));
        };
        let derived = TableFactor::Derived { lateral: false, subquery, alias: None, sample: None };
        let plan = context.plan(derived)?;
        LogicalPlanBuilder::from(plan).alias(self.about.name)?.build()
    }

    fn column(
        &mut self,
        what: &str,
        rows: &LogicalPlan,
        context: &mut dyn RelationPlannerContext,
    ) -> Result<Column> {
        let expr = self.next(&format!("a column for {what}"))?;
        self.column_of(expr, what, rows, context)
    }

    fn column_of(
        &self,
        expr: ast::Expr,
        what: &str,
        rows: &LogicalPlan,
        context: &mut dyn RelationPlannerContext,
    ) -> Result<Column> {
        let shown = expr.to_string();
        match context.sql_to_expr(expr, rows.schema())? {
            Expr::Column(column) if rows.schema().has_column(&column) => Ok(column),
            _ => Err(self.expected(&format!("a column of the query for {what}, got `{shown}`"))),
        }
    }

    fn text(
        &mut self,
        what: &str,
        rows: &LogicalPlan,
        context: &mut dyn RelationPlannerContext,
    ) -> Result<Column> {
        let column = self.column(what, rows, context)?;
        let data_type = rows.schema().field(rows.schema().index_of_column(&column)?).data_type();
        if is_text(data_type) {
            return Ok(column);
        }
        let name = &column.name;
        Err(self.expected(&format!("text for {what}, but `{name}` is {data_type}")))
    }

    /// The argument `n`.
    fn n(&mut self, default: usize, context: &mut dyn RelationPlannerContext) -> Result<usize> {
        let Some(expr) = self.named("n") else { return Ok(default) };
        match number(&expr, context)? {
            Some(n) if n.fract() == 0.0 && (1.0..=LEN_TERMS_MAX as f64).contains(&n) => {
                Ok(n as usize)
            }
            _ => {
                let what = format!("a whole number from 1 to {LEN_TERMS_MAX} for n, got `{expr}`");
                Err(self.expected(&what))
            }
        }
    }

    /// Refuses what is left.
    fn finish(mut self) -> Result<()> {
        let more = self.positional.next().map(|expr| expr.to_string());
        let unknown = self.named.first().map(|(name, _)| format!("{name} => …"));
        match more.or(unknown) {
            Some(more) => Err(self.expected(&format!("no argument `{more}`"))),
            None => Ok(()),
        }
    }

    fn expected(&self, what: &str) -> DataFusionError {
        expected(self.about, what)
    }
}

fn expected(about: TableFunction, what: &str) -> DataFusionError {
    let TableFunction { name, arguments, .. } = about;
    DataFusionError::Plan(format!("{name}: expected {what}{HINT}write {name}({arguments})"))
}

fn is_text(data_type: &DataType) -> bool {
    super::duplicates::plain_type(data_type).is_string()
}

/// The value of a number that is written out.
fn number(expr: &ast::Expr, context: &mut dyn RelationPlannerContext) -> Result<Option<f64>> {
    let is_written = matches!(expr, ast::Expr::Value(_) | ast::Expr::UnaryOp { .. });
    if !is_written {
        return Ok(None);
    }
    let expr = context.sql_to_expr(expr.clone(), &DFSchema::empty())?;
    Ok(match expr {
        Expr::Literal(ScalarValue::Float64(number), _) => number,
        Expr::Literal(ScalarValue::Int64(number), _) => number.map(|number| number as f64),
        _ => None,
    })
}
