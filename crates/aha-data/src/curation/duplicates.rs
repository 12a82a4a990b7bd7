//! `mark_duplicates` at work.
//!
//! Rows come in order. Each goes to the disk as it is, with its set of n-grams and its MinHash keys. Then the rows of
//! each key are compared, and rows that are alike joined: that takes [`Clusters::bytes`] of memory, and what one file
//! of keys holds. Then the rows are read again and marked.

use std::fmt;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Float64Array, RecordBatch, UInt32Array, new_null_array,
};
use arrow::compute::{SortOptions, cast, take};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::row::{RowConverter, SortField};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, SpillFile, TaskContext};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{
    Distribution, EquivalenceProperties, LexRequirement, OrderingRequirements, Partitioning,
    PhysicalExpr, PhysicalSortRequirement,
};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, MetricsSet, SpillMetrics};
use datafusion::physical_plan::spill::SpillManager;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties,
    InputDistributionRequirements, PlanProperties,
};
use futures::{StreamExt, TryStreamExt, stream};

use super::MARK_DUPLICATES;
use super::clusters::Clusters;
use super::minhash::Bands;
use super::ngrams::{Reader, jaccard, set_of};
use super::scratch::{BUFFERS_BYTES, BucketsWriter, Records, RecordsWriter};
use crate::error::HINT;

/// What is a duplicate, and where it is found. Columns are positions in the input's rows.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) id: usize,
    pub(super) text: usize,
    /// The column whose greatest value comes first.
    pub(super) keep: Option<usize>,
    /// Least Jaccard similarity, in [0.2, 1].
    pub(super) threshold: f64,
    /// Terms of an n-gram, at least 1.
    pub(super) n: usize,
}

/// The plan's node.
#[derive(Debug)]
pub(super) struct DuplicatesExec {
    input: Arc<dyn ExecutionPlan>,
    settings: Settings,
    /// The input's columns and the two that are added.
    schema: SchemaRef,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl DuplicatesExec {
    pub(super) fn new(
        input: Arc<dyn ExecutionPlan>,
        settings: Settings,
        schema: SchemaRef,
    ) -> Result<DuplicatesExec> {
        // Rows stay in their order.
        let order = EquivalenceProperties::new(schema.clone());
        let properties = PlanProperties::new(
            order.extend(input.equivalence_properties().clone())?,
            Partitioning::UnknownPartitioning(1),
            EmissionType::Final,
            Boundedness::Bounded,
        );
        let (properties, metrics) = (Arc::new(properties), ExecutionPlanMetricsSet::new());
        Ok(DuplicatesExec { input, settings, schema, properties, metrics })
    }

    /// The order in which rows must come: the first of a cluster first. The text decides where ids are the same.
    fn order(&self) -> Option<OrderingRequirements> {
        let schema = self.input.schema();
        let by = |column: usize, descending: bool| {
            let name = schema.field(column).name();
            let column: Arc<dyn PhysicalExpr> = Arc::new(Column::new(name, column));
            let options = SortOptions { descending, nulls_first: false };
            PhysicalSortRequirement::new(column, Some(options))
        };
        let Settings { id, text, keep, .. } = self.settings;
        let keep = keep.map(|keep| by(keep, true));
        let requirements = keep.into_iter().chain([by(id, false), by(text, false)]);
        LexRequirement::new(requirements).map(OrderingRequirements::new)
    }
}

impl DisplayAs for DuplicatesExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Settings { threshold, n, .. } = self.settings;
        write!(f, "DuplicatesExec: threshold={threshold}, n={n}")
    }
}

impl ExecutionPlan for DuplicatesExec {
    fn name(&self) -> &str {
        "DuplicatesExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn input_distribution_requirements(&self) -> InputDistributionRequirements {
        InputDistributionRequirements::new(vec![Distribution::SinglePartition])
    }

    fn required_input_ordering(&self) -> Vec<Option<OrderingRequirements>> {
        vec![self.order()]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let input = children.pop().filter(|_| children.is_empty());
        let input = input.ok_or_else(|| wrong("DuplicatesExec has one child"))?;
        Ok(Arc::new(DuplicatesExec::new(input, self.settings.clone(), self.schema.clone())?))
    }

    fn execute(&self, _: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let work = Work::begin(self, &context)?;
        let input = self.input.execute(0, context)?;
        let rows = stream::once(work.run(input)).try_flatten();
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), rows)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

/// One run over the rows.
struct Work {
    settings: Settings,
    schema: SchemaRef,
    reservation: MemoryReservation,
    spill: SpillManager,
    context: Arc<TaskContext>,
    /// Keeps what names a row as bytes.
    ids: RowConverter,
}

impl Work {
    fn begin(plan: &DuplicatesExec, context: &Arc<TaskContext>) -> Result<Work> {
        let metrics = SpillMetrics::new(&plan.metrics, 0);
        let spill = SpillManager::new(context.runtime_env(), metrics, plan.input.schema());
        let consumer = MemoryConsumer::new(MARK_DUPLICATES.name);
        let id = plan.input.schema().field(plan.settings.id).data_type().clone();
        Ok(Work {
            settings: plan.settings.clone(),
            schema: plan.schema.clone(),
            reservation: consumer.register(context.memory_pool()),
            spill,
            context: Arc::clone(context),
            ids: RowConverter::new(vec![SortField::new(plain_type(&id))])?,
        })
    }

    /// Reads all rows, and gives them back marked.
    async fn run(
        self,
        input: SendableRecordBatchStream,
    ) -> Result<impl futures::Stream<Item = Result<RecordBatch>> + use<>> {
        self.reservation.try_grow(BUFFERS_BYTES)?;
        let (spooled, records, buckets) = self.spool(input).await?;
        // The files' buffers are written out, and the input's memory is free.
        self.reservation.free();
        let clusters = self.join(records, buckets).await?;
        let batches = match spooled {
            Some(file) => self.spill.read_spill_as_stream(file, None)?.boxed(),
            None => stream::empty().boxed(),
        };
        let mut marker =
            Marker { work: self, clusters, next_row: 0, sets: [Vec::new(), Vec::new()] };
        Ok(batches.map(move |batch| marker.mark(&batch?)))
    }

    /// Puts all rows on the disk.
    async fn spool(
        &self,
        mut input: SendableRecordBatchStream,
    ) -> Result<(Option<Arc<dyn SpillFile>>, RecordsWriter, BucketsWriter)> {
        let runtime = self.context.runtime_env();
        let mut spool = self.spill.create_in_progress_file("marking duplicates")?;
        let mut records = RecordsWriter::create(&runtime)?;
        let mut buckets = BucketsWriter::create(&runtime)?;
        let bands = Bands::of(self.settings.threshold);
        let (mut reader, mut set) = (Reader::new(self.settings.n), Vec::new());
        while let Some(batch) = input.try_next().await? {
            let texts = texts_of(batch.column(self.settings.text))?;
            let texts = texts.as_string::<i32>();
            let ids = self.ids.convert_columns(&[names_of(
                batch.column(self.settings.id),
                MARK_DUPLICATES.name,
            )?])?;
            for (text, id) in texts.iter().zip(&ids) {
                reader.read(text.unwrap_or_default());
                set_of(&reader.ngrams, &mut set);
                let row = records.push(id.as_ref(), &set)?;
                let mut written = Ok(());
                bands.keys(&reader.ngrams, |key| {
                    if written.is_ok() {
                        written = buckets.push(key, row);
                    }
                });
                written?;
            }
            spool.append_batch(&batch)?;
        }
        Ok((spool.finish()?, records, buckets))
    }

    /// Joins rows that are alike.
    async fn join(&self, records: RecordsWriter, buckets: BucketsWriter) -> Result<Joined> {
        let mut records = records.finish()?;
        let clusters_bytes = Clusters::bytes(records.rows_count);
        self.reservation.try_resize(clusters_bytes)?;
        let mut clusters = Clusters::new(records.rows_count, self.settings.threshold);
        for file in buckets.finish()? {
            self.reservation.try_resize(clusters_bytes + file.bytes())?;
            let entries = file.read()?;
            let mut rows = Vec::new();
            for bucket in
                entries.chunk_by(|(a, _), (b, _)| a == b).filter(|bucket| bucket.len() > 1)
            {
                rows.clear();
                rows.extend(bucket.iter().map(|(_, row)| *row));
                clusters.bucket(&rows, |row, set| records.read(row, set).map(drop))?;
            }
            // A query that nobody waits for any more ends here.
            tokio::task::yield_now().await;
        }
        self.reservation.try_resize(clusters_bytes)?;
        Ok(Joined { records, clusters })
    }
}

/// What is known of all rows.
struct Joined {
    records: Records,
    clusters: Clusters,
}

/// Marks the rows as they are read again.
struct Marker {
    work: Work,
    clusters: Joined,
    next_row: u32,
    sets: [Vec<u32>; 2],
}

impl Marker {
    fn mark(&mut self, batch: &RecordBatch) -> Result<RecordBatch> {
        let Joined { records, clusters } = &mut self.clusters;
        let [set, first_set] = &mut self.sets;
        let mut ids: Vec<Vec<u8>> = Vec::new();
        let mut places = Vec::with_capacity(batch.num_rows());
        let mut similarities = Vec::with_capacity(batch.num_rows());
        for _ in 0..batch.num_rows() {
            let row = self.next_row;
            self.next_row += 1;
            let first = clusters.first(row);
            let is_duplicate = first != row;
            places.push(is_duplicate.then_some(ids.len() as u32));
            if is_duplicate {
                records.read(row, set)?;
                ids.push(records.read(first, first_set)?.to_vec());
            }
            similarities.push(is_duplicate.then(|| jaccard(set, first_set)));
        }
        let id_type = self.schema_type();
        let duplicate_of = if ids.is_empty() {
            new_null_array(&id_type, batch.num_rows())
        } else {
            let parser = self.work.ids.parser();
            let rows = ids.iter().map(|id| parser.parse(id));
            let ids = self.work.ids.convert_rows(rows)?;
            take(&ids[0], &UInt32Array::from(places), None)?
        };
        let mut columns = batch.columns().to_vec();
        columns.push(duplicate_of);
        columns.push(Arc::new(Float64Array::from(similarities)));
        Ok(RecordBatch::try_new(self.work.schema.clone(), columns)?)
    }

    fn schema_type(&self) -> DataType {
        let added = self.work.schema.fields().len() - 2;
        self.work.schema.field(added).data_type().clone()
    }
}

/// The type of a column whose values are named again elsewhere: without a dictionary.
pub(super) fn plain_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Dictionary(_, values) => (**values).clone(),
        data_type => data_type.clone(),
    }
}

/// What names rows, as [`plain_type`]. Where a name is null, nobody could tell that its row was meant.
pub(super) fn names_of(values: &ArrayRef, call: &str) -> Result<ArrayRef> {
    if values.logical_null_count() > 0 {
        return Err(DataFusionError::Execution(format!(
            "{call}: what names a row is null{HINT}leave such rows out, or name them in the query: \
             coalesce(id, 'none')"
        )));
    }
    match values.data_type() {
        DataType::Dictionary(_, data_type) => Ok(cast(values, data_type)?),
        _ => Ok(Arc::clone(values)),
    }
}

/// Texts of any encoding as `Utf8`.
pub(super) fn texts_of(texts: &ArrayRef) -> Result<ArrayRef> {
    match texts.data_type() {
        DataType::Utf8 => Ok(Arc::clone(texts)),
        _ => Ok(cast(texts, &DataType::Utf8)?),
    }
}

pub(super) fn wrong(what: &str) -> DataFusionError {
    DataFusionError::Internal(what.to_owned())
}
