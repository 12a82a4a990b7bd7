//! The calls as nodes of a plan: what they read, what they add, and how they are run.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef};
use async_trait::async_trait;
use datafusion::catalog::Session;
use datafusion::common::{Column, DFSchema, DFSchemaRef, TableReference};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{
    Expr, LogicalPlan, UserDefinedLogicalNode, UserDefinedLogicalNodeCore,
};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_planner::{ExtensionPlanner, PhysicalPlanner};

use super::contaminated::ContaminatedExec;
use super::duplicates::{DuplicatesExec, Settings, plain_type, wrong};
use super::{MARK_CONTAMINATED, MARK_DUPLICATES, TableFunction};
use crate::error::HINT;

/// Which call it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Call {
    /// Least similarity, as the bits of an `f64`, so that plans can be compared.
    Duplicates {
        threshold_bits: u64,
    },
    Contaminated,
}

/// A call with what it reads.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Mark {
    call: Call,
    /// Terms or words of an n-gram.
    n: usize,
    /// The rows, and the evaluation's texts.
    inputs: Vec<LogicalPlan>,
    /// Columns of the rows: id, text and, if it is given, what is kept; the text alone.
    columns: Vec<Column>,
    schema: DFSchemaRef,
}

impl Mark {
    pub(super) fn new(
        call: Call,
        n: usize,
        inputs: Vec<LogicalPlan>,
        columns: Vec<Column>,
    ) -> Result<Mark> {
        let mut mark = Mark { call, n, inputs, columns, schema: Arc::new(DFSchema::empty()) };
        let rows = mark.inputs[0].schema();
        let known = rows.iter().map(|(table, field)| (table.cloned(), Arc::clone(field)));
        let fields = known.chain(mark.added()?).collect();
        mark.schema = Arc::new(DFSchema::new_with_metadata(fields, rows.metadata().clone())?);
        Ok(mark)
    }

    fn about(&self) -> TableFunction {
        match self.call {
            Call::Duplicates { .. } => MARK_DUPLICATES,
            Call::Contaminated => MARK_CONTAMINATED,
        }
    }

    /// The two columns that the call adds.
    fn added(&self) -> Result<[(Option<TableReference>, FieldRef); 2]> {
        let about = self.about();
        let names = about.columns.map(|(name, ..)| name);
        let rows = self.inputs[0].schema();
        if let Some(name) = names.iter().find(|name| rows.has_column_with_unqualified_name(name)) {
            return Err(DataFusionError::Plan(format!(
                "the query in `{}` has a column `{name}`, which the call adds{HINT}select the others, or \
                 rename it with AS",
                about.name
            )));
        }
        let types = match self.call {
            Call::Duplicates { .. } => {
                let id = rows.field(rows.index_of_column(&self.columns[0])?);
                [plain_type(id.data_type()), DataType::Float64]
            }
            Call::Contaminated => {
                [plain_type(self.inputs[1].schema().field(0).data_type()), DataType::Utf8]
            }
        };
        let [first, second] = types;
        let table = Some(TableReference::bare(about.name));
        let field = |name, data_type| Arc::new(Field::new(name, data_type, true));
        Ok([(table.clone(), field(names[0], first)), (table, field(names[1], second))])
    }

    /// Where the columns are in the rows.
    fn places(&self, rows: &DFSchema) -> Result<Vec<usize>> {
        self.columns.iter().map(|column| rows.index_of_column(column)).collect()
    }
}

/// Plans aren't ordered but where they are the same.
impl PartialOrd for Mark {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (self == other).then_some(Ordering::Equal)
    }
}

impl UserDefinedLogicalNodeCore for Mark {
    fn name(&self) -> &str {
        self.about().name
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        self.inputs.iter().collect()
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        self.columns.iter().cloned().map(Expr::Column).collect()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.call {
            Call::Duplicates { threshold_bits } => {
                let threshold = f64::from_bits(threshold_bits);
                write!(f, "MarkDuplicates: threshold={threshold}, n={}", self.n)
            }
            Call::Contaminated => write!(f, "MarkContaminated: n={}", self.n),
        }
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, inputs: Vec<LogicalPlan>) -> Result<Self> {
        let columns = exprs.into_iter().map(|expr| match expr {
            Expr::Column(column) => Ok(column),
            expr => Err(wrong(&format!("a column became `{expr}`"))),
        });
        Mark::new(self.call, self.n, inputs, columns.collect::<Result<_>>()?)
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        let rows = self.inputs[0].schema();
        let mut needed = self.places(rows).ok()?;
        needed.extend(output_columns.iter().filter(|column| **column < rows.fields().len()));
        needed.sort_unstable();
        needed.dedup();
        let others =
            self.inputs[1..].iter().map(|input| (0..input.schema().fields().len()).collect());
        Some(std::iter::once(needed).chain(others).collect())
    }
}

/// Makes what runs of what is planned.
pub(super) struct Marks;

#[async_trait]
impl ExtensionPlanner for Marks {
    async fn plan_extension(
        &self,
        _: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        _: &[&LogicalPlan],
        physical_inputs: &[Arc<dyn ExecutionPlan>],
        _: &dyn Session,
        _: &PhysicalPlanningContext,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let Some(mark) = node.as_any().downcast_ref::<Mark>() else { return Ok(None) };
        let schema = Arc::clone(mark.schema.inner());
        let places = mark.places(mark.inputs[0].schema())?;
        let plan: Arc<dyn ExecutionPlan> = match (mark.call, physical_inputs, &*places) {
            (Call::Duplicates { threshold_bits }, [input], [id, text, keep @ ..]) => {
                let (keep, threshold) = (keep.first().copied(), f64::from_bits(threshold_bits));
                let settings = Settings { id: *id, text: *text, keep, threshold, n: mark.n };
                Arc::new(DuplicatesExec::new(Arc::clone(input), settings, schema)?)
            }
            (Call::Contaminated, [rows, evaluation], [text]) => {
                let inputs = [Arc::clone(rows), Arc::clone(evaluation)];
                Arc::new(ContaminatedExec::new(inputs, *text, mark.n, schema)?)
            }
            _ => return Err(wrong("a call that marks rows has other inputs")),
        };
        Ok(Some(plan))
    }
}
