//! `mark_contaminated` at work: the n-grams of the evaluation sets are in memory, and rows stream by.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, RecordBatch, StringArray, UInt32Array, new_null_array,
};
use arrow::compute::take;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::row::{RowConverter, SortField};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{Distribution, EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties,
    InputDistributionRequirements, PlanProperties,
};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::OnceCell;

use super::MARK_CONTAMINATED;
use super::duplicates::{names_of, plain_type, texts_of, wrong};
use super::ngrams::hash_of_run;
use super::terms::{Terms, composed};

/// A name in the list, the values that become of it, and what the allocator adds.
const NAME_BYTES: usize = size_of::<Box<[u8]>>() + 32;

/// The plan's node. Of the evaluation's columns the first names a text, the second is the text.
#[derive(Debug)]
pub(super) struct ContaminatedExec {
    rows: Arc<dyn ExecutionPlan>,
    evaluation: Arc<dyn ExecutionPlan>,
    /// The rows' column with their text.
    text: usize,
    /// Words of an n-gram, at least 1.
    n: usize,
    /// The rows' columns and the two that are added.
    schema: SchemaRef,
    properties: Arc<PlanProperties>,
    /// Made by the first part of the query that needs it.
    index: Arc<OnceCell<Arc<Index>>>,
}

impl ContaminatedExec {
    pub(super) fn new(
        [rows, evaluation]: [Arc<dyn ExecutionPlan>; 2],
        text: usize,
        n: usize,
        schema: SchemaRef,
    ) -> Result<ContaminatedExec> {
        // Rows stay in their order.
        let order = EquivalenceProperties::new(schema.clone());
        let properties = Arc::new(PlanProperties::new(
            order.extend(rows.equivalence_properties().clone())?,
            rows.output_partitioning().clone(),
            EmissionType::Incremental,
            Boundedness::Bounded,
        ));
        let index = Arc::default();
        Ok(ContaminatedExec { rows, evaluation, text, n, schema, properties, index })
    }
}

impl DisplayAs for ContaminatedExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContaminatedExec: n={}", self.n)
    }
}

impl ExecutionPlan for ContaminatedExec {
    fn name(&self) -> &str {
        "ContaminatedExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.rows, &self.evaluation]
    }

    fn input_distribution_requirements(&self) -> InputDistributionRequirements {
        let rows = Distribution::UnspecifiedDistribution;
        InputDistributionRequirements::new(vec![rows, Distribution::SinglePartition])
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true, false]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let children = <[_; 2]>::try_from(children);
        let children = children.map_err(|_| wrong("ContaminatedExec has two children"))?;
        Ok(Arc::new(ContaminatedExec::new(children, self.text, self.n, self.schema.clone())?))
    }

    fn execute(&self, part: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let rows = self.rows.execute(part, Arc::clone(&context))?;
        let (index, evaluation) = (Arc::clone(&self.index), Arc::clone(&self.evaluation));
        let (schema, text, n) = (self.schema.clone(), self.text, self.n);
        let marked = async move {
            let index = index.get_or_try_init(|| Index::read(evaluation, n, context)).await?;
            let mut marker =
                Marker { index: Arc::clone(index), schema, text, reader: Reader::new(n) };
            Ok::<_, DataFusionError>(rows.map(move |batch| marker.mark(&batch?)))
        };
        let marked = stream::once(marked).try_flatten();
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), marked)))
    }
}

/// Reads the words of one text after the other; memory is used again.
struct Reader {
    n: usize,
    terms: Terms,
    hashes: Vec<u64>,
    sources: Vec<Range<usize>>,
}

/// What of a text is looked for in others.
enum Runs<'a> {
    /// Nothing: it has no terms.
    None,
    /// The text as a whole, signs included: it has fewer words than an n-gram.
    Whole(u64),
    /// Hashes of its words, and where each is.
    Words(&'a [u64], &'a [Range<usize>]),
}

impl Runs<'_> {
    /// At least as many as there are n-grams.
    fn count(&self) -> usize {
        match self {
            Runs::None | Runs::Whole(_) => 0,
            Runs::Words(hashes, _) => hashes.len(),
        }
    }
}

impl Reader {
    fn new(n: usize) -> Reader {
        Reader { n, terms: Terms::default(), hashes: Vec::new(), sources: Vec::new() }
    }

    /// Reads a text, which is composed.
    fn read(&mut self, text: &str) -> Runs<'_> {
        self.terms.read(text);
        self.terms.words(&mut self.hashes, &mut self.sources);
        if self.hashes.len() >= self.n {
            return Runs::Words(&self.hashes, &self.sources);
        }
        self.terms.hashes(&mut self.hashes);
        if self.hashes.is_empty() { Runs::None } else { Runs::Whole(hash_of_run(&self.hashes)) }
    }
}

/// Keys are hashes already.
#[derive(Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

/// The row of the evaluation set for each key.
type Keys = HashMap<u64, u32, BuildHasherDefault<Identity>>;

/// The n-grams of the evaluation set.
#[derive(Debug)]
struct Index {
    /// Rows with an n-gram.
    ngrams: Keys,
    /// Rows with a text of fewer words.
    wholes: Keys,
    /// What names each row.
    ids: ArrayRef,
    /// Given back with the index.
    _reservation: MemoryReservation,
}

impl Index {
    async fn read(
        evaluation: Arc<dyn ExecutionPlan>,
        n: usize,
        context: Arc<TaskContext>,
    ) -> Result<Arc<Index>> {
        let consumer = MemoryConsumer::new(MARK_CONTAMINATED.name);
        let reservation = consumer.register(context.memory_pool());
        let id_type = plain_type(evaluation.schema().field(0).data_type());
        let converter = RowConverter::new(vec![SortField::new(id_type)])?;
        let mut batches = evaluation.execute(0, context)?;
        let (mut ngrams, mut wholes) = (Keys::default(), Keys::default());
        // What names each row, as bytes in whose order the values are.
        let mut names: Vec<Box<[u8]>> = Vec::new();
        let (mut names_bytes, mut reader) = (0, Reader::new(n));
        while let Some(batch) = batches.try_next().await? {
            let ids =
                converter.convert_columns(&[names_of(batch.column(0), MARK_CONTAMINATED.name)?])?;
            let texts = texts_of(batch.column(1))?;
            for (text, id) in texts.as_string::<i32>().iter().zip(&ids) {
                let row = u32::try_from(names.len());
                let row = row.map_err(|_| wrong("an evaluation set has more than 2^32 texts"))?;
                names.push(id.as_ref().into());
                names_bytes += id.as_ref().len() + NAME_BYTES;
                let runs = reader.read(&composed(text.unwrap_or_default()));
                let ngrams_bytes = bytes_of(ngrams.len() + runs.count());
                reservation.try_resize(names_bytes + bytes_of(wholes.len() + 1) + ngrams_bytes)?;
                match runs {
                    Runs::None => {}
                    Runs::Whole(hash) => put(&mut wholes, hash, row, &names),
                    Runs::Words(hashes, _) => {
                        let runs = hashes.windows(n).map(hash_of_run);
                        runs.for_each(|hash| put(&mut ngrams, hash, row, &names));
                    }
                }
            }
        }
        let parser = converter.parser();
        let ids = converter.convert_rows(names.iter().map(|name| parser.parse(name)))?.remove(0);
        Ok(Arc::new(Index { ngrams, wholes, ids, _reservation: reservation }))
    }

    /// The row of the evaluation set that has the first of the runs that any has, and where in the text that is; the
    /// whole text where there is no place.
    fn find(&self, runs: &Runs<'_>, n: usize) -> Option<(u32, Option<Range<usize>>)> {
        match runs {
            Runs::None => None,
            Runs::Whole(hash) => self.wholes.get(hash).map(|row| (*row, None)),
            Runs::Words(hashes, sources) => {
                let found = hashes.windows(n).enumerate().find_map(|(idx, run)| {
                    self.ngrams.get(&hash_of_run(run)).map(|row| (idx, *row))
                });
                let (idx, row) = found?;
                Some((row, Some(sources[idx].start..sources[idx + n - 1].end)))
            }
        }
    }
}

/// Puts a row in for a key. Of several rows the one with the smallest name stays, whatever their order.
fn put(keys: &mut Keys, key: u64, row: u32, names: &[Box<[u8]>]) {
    let known = keys.entry(key).or_insert(row);
    if names[row as usize] < names[*known as usize] {
        *known = row;
    }
}

/// Most memory that a table of so many keys takes while it grows: places by powers of two, of which 7 in 8 are used,
/// and half as many of the table before.
fn bytes_of(keys_count: usize) -> usize {
    let places_count = (keys_count * 8 / 7 + 1).next_power_of_two();
    places_count * (size_of::<(u64, u32)>() + 1) * 3 / 2
}

/// Marks the rows of one part of a query.
struct Marker {
    index: Arc<Index>,
    schema: SchemaRef,
    text: usize,
    reader: Reader,
}

impl Marker {
    fn mark(&mut self, batch: &RecordBatch) -> Result<RecordBatch> {
        let texts = texts_of(batch.column(self.text))?;
        let (mut rows, mut shared) = (Vec::new(), Vec::new());
        for text in texts.as_string::<i32>() {
            let text = composed(text.unwrap_or_default());
            let n = self.reader.n;
            let found = self.index.find(&self.reader.read(&text), n);
            let place = |place: &Option<Range<usize>>| match place {
                Some(place) => text[place.clone()].to_owned(),
                None => text.trim().to_owned(),
            };
            rows.push(found.as_ref().map(|(row, _)| *row));
            shared.push(found.as_ref().map(|(_, at)| place(at)));
        }
        let is_clean = rows.iter().all(Option::is_none);
        let contaminated_by = if is_clean {
            new_null_array(self.index.ids.data_type(), rows.len())
        } else {
            take(&self.index.ids, &UInt32Array::from(rows), None)?
        };
        let shared: ArrayRef = match is_clean {
            true => new_null_array(&DataType::Utf8, shared.len()),
            false => Arc::new(StringArray::from(shared)),
        };
        let mut columns = batch.columns().to_vec();
        columns.extend([contaminated_by, shared]);
        Ok(RecordBatch::try_new(self.schema.clone(), columns)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_that_is_asked_for_is_enough() {
        let mut keys = Keys::default();
        for key in 0..5_000_u64 {
            keys.insert(key.wrapping_mul(0x9e37_79b9_7f4a_7c15), 0);
            let taken = keys.capacity() * 8 / 7 * 17;
            assert!(taken <= bytes_of(keys.len()), "{key}: {taken}");
        }
    }
}
