//! Matrix products by cuBLASLt.
//!
//! cuBLASLt's matrices have columns without gaps, so a row-major product is that of the transposes in the other
//! order: `cᵀ = bᵀ aᵀ`. What is `a` here is its `B`.
//!
//! The kernel of a product is chosen once for its shape and used from then on. Where `m` counts rows of activations,
//! it is chosen for [`PLANNED_ROWS`] whatever `m` is, and no kernel that cuts sums into parts is considered: so an
//! element is the same sum in the same order, whichever rows share the call. Only if that kernel can't do so few rows,
//! another is chosen for them.
//!
//! What the library is told of a product but for where its operands are is kept by shape, so that asking again takes
//! a look-up and one call.

use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr;

use cudarc::cublaslt::result::CublasError;
use cudarc::cublaslt::{result, sys};
use cudarc::driver::sys::CUstream;

use crate::{Error, Kind, Operand, Product, Ptr, Stream};

/// Rows that kernels are chosen for.
const PLANNED_ROWS: usize = 1024;
/// Memory that kernels may work in; cuBLAS' own default on Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;
/// Products that are kept: with as many, batches of other sizes came and went, and all are forgotten.
const PREPARED_MAX: usize = 4096;

pub(super) struct Blas {
    handle: sys::cublasLtHandle_t,
    algos: HashMap<Key, sys::cublasLtMatmulAlgo_t>,
    /// With the number of rows.
    prepared: HashMap<(Key, usize), Prepared>,
    workspaces: HashMap<Stream, u64>,
}

/// All of a product but for where its operands are.
struct Prepared {
    desc: Desc,
    layouts: Layouts,
    algo: sys::cublasLtMatmulAlgo_t,
}

// SAFETY: the handle is cuBLASLt's, which may be used from any thread, one at a time.
unsafe impl Send for Blas {}

/// What the choice of a kernel depends on.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    /// None where they are rows of activations.
    m: Option<usize>,
    n: usize,
    k: usize,
    kinds: [Kind; 2],
    transposed: [bool; 2],
    strides: [usize; 3],
    alignments: [u32; 3],
    has_bias: bool,
}

impl Key {
    fn of(product: &Product) -> Key {
        let Product { m, n, k, a, b, .. } = *product;
        Key {
            m: a.is_transposed.then_some(m),
            n,
            k,
            kinds: [a.kind, product.c_kind],
            transposed: [a.is_transposed, b.is_transposed],
            strides: [a.row_stride, b.row_stride, product.c_stride],
            alignments: alignments(product),
            has_bias: product.bias.is_some(),
        }
    }
}

/// At a multiple of how many bytes `a`, `b` and `c` begin: 16, which all kernels are content with, or an element. A
/// buffer begins at a multiple of 256, and its rows at one of 16 where they are as long: in all models that are known.
fn alignments(product: &Product) -> [u32; 3] {
    let Product { a, b, c, c_kind, .. } = *product;
    [(a.at, a.kind), (b.at, b.kind), (c, c_kind)]
        .map(|(at, kind)| if at.0.is_multiple_of(16) { 16 } else { kind.bytes() as u32 })
}

impl Blas {
    pub(super) fn new() -> Result<Blas, Error> {
        ask_for_library()?;
        let handle = done("cublasLtCreate", result::create_handle())?;
        let (algos, prepared, workspaces) = (HashMap::new(), HashMap::new(), HashMap::new());
        Ok(Blas { handle, algos, prepared, workspaces })
    }

    pub(super) fn close(self) {
        drop(self.prepared);
        // SAFETY: the handle was created, and all work is done.
        unsafe {
            for at in self.workspaces.into_values() {
                let _ = cudarc::driver::result::free_sync(at);
            }
            let _ = result::destroy_handle(self.handle);
        }
    }

    /// Asks for a product.
    ///
    /// # Safety
    /// As of [`crate::Driver::product`].
    pub(super) unsafe fn product(
        &mut self,
        product: &Product,
        stream: Stream,
        handle: CUstream,
    ) -> Result<(), Error> {
        let workspace = self.workspace(stream)?;
        let library = self.handle;
        let Prepared { desc, layouts, algo } = self.prepared(product)?;
        desc.point_to_bias(product.bias)?;
        let c = product.c.0 as *mut c_void;
        // SAFETY: descriptions live on; the operands are the caller's promise.
        let result = unsafe {
            result::matmul(
                library,
                desc.0,
                ptr::from_ref(&product.alpha).cast(),
                ptr::from_ref(&product.beta).cast(),
                product.b.at.0 as *const c_void,
                layouts.0[0].0,
                product.a.at.0 as *const c_void,
                layouts.0[1].0,
                c,
                layouts.0[2].0,
                c,
                layouts.0[2].0,
                algo,
                workspace as *mut c_void,
                WORKSPACE_BYTES,
                handle.cast(),
            )
        };
        done("cublasLtMatmul", result)
    }

    fn prepared(&mut self, product: &Product) -> Result<&Prepared, Error> {
        let key = (Key::of(product), product.m);
        if !self.prepared.contains_key(&key) {
            if self.prepared.len() >= PREPARED_MAX {
                self.prepared.clear();
            }
            let desc = Desc::new(product)?;
            let layouts = Layouts::new(product, product.m)?;
            let algo = self.algo(product, &desc, &layouts)?;
            self.prepared.insert(key.clone(), Prepared { desc, layouts, algo });
        }
        Ok(&self.prepared[&key])
    }

    fn workspace(&mut self, stream: Stream) -> Result<u64, Error> {
        if let Some(at) = self.workspaces.get(&stream) {
            return Ok(*at);
        }
        // SAFETY: it is given back when this is closed.
        let at = unsafe { cudarc::driver::result::malloc_sync(WORKSPACE_BYTES) };
        let at = super::done("cuMemAlloc", at)?;
        self.workspaces.insert(stream, at);
        Ok(at)
    }

    /// The kernel of a product, which has these layouts.
    fn algo(
        &mut self,
        product: &Product,
        desc: &Desc,
        layouts: &Layouts,
    ) -> Result<sys::cublasLtMatmulAlgo_t, Error> {
        let key = Key::of(product);
        let planned = match self.algos.get(&key) {
            Some(algo) => *algo,
            None => {
                let planned = Layouts::new(product, key.m.unwrap_or(PLANNED_ROWS))?;
                let algo = self.choose(product, desc, &planned)?;
                *self.algos.entry(key.clone()).or_insert(algo)
            }
        };
        if self.check(&planned, desc, layouts).is_ok() {
            return Ok(planned);
        }
        // One that can't do so few rows: another has to, which may have other bits.
        let key = Key { m: Some(product.m), ..key };
        if let Some(algo) = self.algos.get(&key) {
            return Ok(*algo);
        }
        let algo = self.choose(product, desc, layouts)?;
        Ok(*self.algos.entry(key).or_insert(algo))
    }

    /// Whether a kernel can do a product with these layouts; cuBLASLt's error if not.
    fn check(
        &self,
        algo: &sys::cublasLtMatmulAlgo_t,
        desc: &Desc,
        layouts: &Layouts,
    ) -> Result<(), Error> {
        let [b, a, c] = &layouts.0;
        let mut found = std::mem::MaybeUninit::uninit();
        // SAFETY: all descriptions live on.
        let status = unsafe {
            sys::cublasLtMatmulAlgoCheck(
                self.handle,
                desc.0,
                b.0,
                a.0,
                c.0,
                c.0,
                algo,
                found.as_mut_ptr(),
            )
        };
        done("cublasLtMatmulAlgoCheck", status.result())
    }

    /// The kernel that cuBLASLt holds to be fastest for these layouts.
    fn choose(
        &self,
        product: &Product,
        desc: &Desc,
        layouts: &Layouts,
    ) -> Result<sys::cublasLtMatmulAlgo_t, Error> {
        let [b, a, c] = &layouts.0;
        let preference = Preference::new(alignments(product))?;
        // SAFETY: all descriptions live on.
        let found = unsafe {
            let handle = self.handle;
            result::get_matmul_algo_heuristic(handle, desc.0, b.0, a.0, c.0, c.0, preference.0)
        };
        Ok(done("cublasLtMatmulAlgoGetHeuristic", found)?.algo)
    }
}

/// Whether the library is there; what to do if it isn't.
pub(super) fn ask_for_library() -> Result<(), Error> {
    // SAFETY: loading the library runs its initializers, which are NVIDIA's.
    if unsafe { sys::is_culib_present() } {
        return Ok(());
    }
    Err(Error::Missing {
        what: "CUDA's matrix products (libcublasLt) were not found".into(),
        remedy: "install them with the CUDA toolkit or by `pip install nvidia-cublas`, and put their folder into \
                 `LD_LIBRARY_PATH`"
            .into(),
    })
}

fn done<T>(call: &'static str, result: Result<T, CublasError>) -> Result<T, Error> {
    result.map_err(|error| Error::Failed { call, code: format!("{:?}", error.0) })
}

fn data_type(kind: Kind) -> Result<sys::cudaDataType, Error> {
    match kind {
        Kind::F32 => Ok(sys::cudaDataType::CUDA_R_32F),
        Kind::Bf16 => Ok(sys::cudaDataType::CUDA_R_16BF),
        other => {
            Err(Error::Failed { call: "cublasLtMatmul", code: format!("no product of {other}") })
        }
    }
}

/// What is multiplied how.
struct Desc(sys::cublasLtMatmulDesc_t);

impl Desc {
    fn new(product: &Product) -> Result<Desc, Error> {
        // Without the faster kinds of arithmetic, f32 factors stay what they are.
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let created = result::create_matmul_desc(compute, sys::cudaDataType::CUDA_R_32F);
        let desc = Desc(done("cublasLtMatmulDescCreate", created)?);
        let op = |operand: &Operand| i32::from(operand.is_transposed);
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        desc.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &op(&product.b))?;
        desc.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, &op(&product.a))?;
        if product.bias.is_some() {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
            desc.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
            desc.point_to_bias(product.bias)?;
            let kind = data_type(product.c_kind)?;
            desc.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &kind)?;
        }
        Ok(desc)
    }

    /// Where the bias is, of a product that has one.
    fn point_to_bias(&self, bias: Option<Ptr>) -> Result<(), Error> {
        use sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
        bias.map_or(Ok(()), |bias| self.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias.0))
    }

    fn set<T>(&self, name: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<(), Error> {
        let at = ptr::from_ref(value).cast();
        // SAFETY: the attribute is of this type.
        let set = unsafe { result::set_matmul_desc_attribute(self.0, name, at, size_of::<T>()) };
        done("cublasLtMatmulDescSetAttribute", set)
    }
}

impl Drop for Desc {
    fn drop(&mut self) {
        // SAFETY: it was created and not destroyed before.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// How a matrix is stored.
struct Layout(sys::cublasLtMatrixLayout_t);

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: it was created and not destroyed before.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// How `b`, `a` and `c` are stored, as cuBLASLt sees them.
struct Layouts([Layout; 3]);

impl Layouts {
    fn new(product: &Product, m: usize) -> Result<Layouts, Error> {
        let Product { n, k, a, b, .. } = *product;
        let layout = |kind: Kind, [rows, cols]: [usize; 2], stride: usize| {
            let kind = data_type(kind)?;
            let created =
                result::create_matrix_layout(kind, cols as u64, rows as u64, stride as i64);
            done("cublasLtMatrixLayoutCreate", created).map(Layout)
        };
        let stored = |operand: &Operand, [rows, cols]: [usize; 2]| {
            let shape = if operand.is_transposed { [cols, rows] } else { [rows, cols] };
            layout(operand.kind, shape, operand.row_stride)
        };
        Ok(Layouts([
            stored(&b, [k, n])?,
            stored(&a, [m, k])?,
            layout(product.c_kind, [m, n], product.c_stride)?,
        ]))
    }
}

/// Which kernels are considered.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new([a, b, c]: [u32; 3]) -> Result<Preference, Error> {
        let created = result::create_matmul_pref();
        let preference = Preference(done("cublasLtMatmulPreferenceCreate", created)?);
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let bytes = WORKSPACE_BYTES as u64;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes)?;
        // Those that cut no sum into parts.
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &0u32)?;
        // In cuBLASLt's order, `b` is the first factor.
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &b)?;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &a)?;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &c)?;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &c)?;
        Ok(preference)
    }

    fn set<T>(
        &self,
        name: sys::cublasLtMatmulPreferenceAttributes_t,
        value: &T,
    ) -> Result<(), Error> {
        let at = ptr::from_ref(value).cast();
        // SAFETY: the attribute is of this type.
        let set = unsafe { result::set_matmul_pref_attribute(self.0, name, at, size_of::<T>()) };
        done("cublasLtMatmulPreferenceSetAttribute", set)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: it was created and not destroyed before.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}
