//! The emulation does what a device does, and sees what a device doesn't show.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use aha_cuda::{Arg, Context, Driver, Error, Kind, Pinned, Plan, Source, Stream, Workspace};
use aha_emulate::{Emulated, Order};
use half::bf16;

static SOURCE: Source = Source { name: "machine.cu", text: include_str!("machine.cu") };

fn plan(kernel: &'static str, blocks: usize, threads: u32) -> Plan {
    Plan::new(&SOURCE, kernel, blocks, threads)
}

fn contexts() -> [Context; 2] {
    Emulated::both().map(|driver| Context::new(driver))
}

fn run(context: &Context, plan: &Plan, args: &[Arg]) -> Result<(), Error> {
    // SAFETY: the arguments are those of the kernels above, but where a test says otherwise and they are refused.
    unsafe { context.launch(plan, args) }
}

fn fault(plan: &Plan, kind: Kind) -> String {
    let context = &contexts()[0];
    let mut to = context.zeros(kind, 64).unwrap();
    let error = run(context, plan, &[Arg::from(&to.view_mut())]).unwrap_err();
    error.to_string()
}

#[test]
fn what_lacks_a_barrier_differs_between_the_orders() {
    let from: Vec<u32> = (0..256).collect();
    let want: Vec<u32> = from.iter().rev().copied().collect();
    let reversed = |kernel| {
        contexts().map(|context| {
            let from = context.upload(&from).unwrap();
            let mut to = context.buffer(Kind::U32, 256).unwrap();
            let args = [Arg::from(&to.view_mut()), Arg::from(&from.view())];
            run(&context, &plan(kernel, 4, 64), &args).unwrap();
            context.download::<u32>(to.view()).unwrap()
        })
    };
    assert_eq!(reversed("reverse_right"), [want.clone(), want]);
    let [forward, backward] = reversed("reverse_racing");
    assert_ne!(forward, backward);
}

/// Goal: who doesn't wait for a copy reads what was there, in one of the orders.
#[test]
fn asynchronous_copies_come_early_or_late() {
    let from: Vec<u32> = (0..32).collect();
    let want: Vec<u32> = from.iter().map(|i| if i / 4 % 2 == 0 { *i } else { 0 }).collect();
    let copied = |kernel| {
        contexts().map(|context| {
            let from = context.upload(&from).unwrap();
            let mut to = context.buffer(Kind::U32, 32).unwrap();
            let args = [Arg::from(&to.view_mut()), Arg::from(&from.view())];
            run(&context, &plan(kernel, 1, 32), &args).unwrap();
            context.download::<u32>(to.view()).unwrap()
        })
    };
    assert_eq!(copied("copies_waiting"), [want.clone(), want]);
    let [forward, backward] = copied("copies_hurrying");
    assert_ne!(forward, backward);
}

/// Small integers, whose products and sums are exact.
#[test]
fn squares_are_multiplied_from_rows_and_from_columns() {
    let number = |seed: usize, i: usize| ((i * 7 + seed) % 11) as f32 - 5.0;
    let a: Vec<f32> = (0..16 * 16).map(|i| number(1, i)).collect();
    let b: Vec<f32> = (0..16 * 8).map(|i| number(2, i)).collect();
    let cell = |row: usize, column: usize| -> f32 {
        1.0 + (0..16).map(|k| a[row * 16 + k] * b[k * 8 + column]).sum::<f32>()
    };
    let want: Vec<f32> = (0..16 * 8).map(|i| cell(i / 8, i % 8)).collect();
    let columns: Vec<f32> = (0..8 * 16).map(|i| b[i % 16 * 8 + i / 16]).collect();
    for context in contexts() {
        let upload = |values: &[f32]| {
            let values: Vec<bf16> = values.iter().map(|x| bf16::from_f32(*x)).collect();
            context.upload(&values).unwrap()
        };
        for (by_rows, b) in [(1, &b), (0, &columns)] {
            let (a, b) = (upload(&a), upload(b));
            let mut c = context.buffer(Kind::F32, 16 * 8).unwrap();
            let args = [
                Arg::from(&c.view_mut()),
                Arg::from(&a.view()),
                Arg::from(&b.view()),
                Arg::U32(by_rows),
            ];
            run(&context, &plan("product", 1, 32), &args).unwrap();
            assert_eq!(context.download::<f32>(c.view()).unwrap(), want, "by_rows = {by_rows}");
        }
    }
}

#[test]
fn barriers_that_not_all_threads_reach_are_errors() {
    let said = fault(&plan("diverging", 1, 64), Kind::U32);
    assert!(said.contains("waits at the barrier") && said.contains("has left"), "{said}");
    let said = fault(&plan("two_barriers", 1, 64), Kind::U32);
    assert!(said.contains("at once"), "{said}");
    let said = fault(&plan("half_a_warp", 1, 64), Kind::F32);
    assert!(said.contains("waits for its warp"), "{said}");
    let said = fault(&plan("half_a_warp", 1, 20), Kind::F32);
    assert!(said.contains("there is no lane 20") || said.contains("has left"), "{said}");
}

#[test]
fn misaligned_vectors_and_wrong_arguments_are_errors() {
    let said = fault(&plan("misaligned", 1, 1), Kind::F32);
    assert!(said.contains("16 bytes at once"), "{said}");
    let said = fault(&plan("past_the_end", 1, 1), Kind::U32);
    assert!(said.contains("takes parameters of [8, 4] bytes, not of [8]"), "{said}");
    let said = fault(&plan("nowhere", 1, 1), Kind::U32);
    assert!(said.contains("nowhere"), "{said}");
    let said = fault(&plan("diverging", 1, 65), Kind::U32);
    assert!(said.contains("65 threads, at most 64"), "{said}");
}

#[test]
#[should_panic(expected = "past_the_end wrote outside of a buffer")]
fn writes_around_a_buffer_are_seen() {
    let context = &contexts()[0];
    let mut to = context.zeros(Kind::U32, 128).unwrap();
    run(context, &plan("past_the_end", 1, 1), &[Arg::from(&to.view_mut()), Arg::U32(128)]).unwrap();
}

#[test]
fn sums_votes_and_shared_memory_are_those_of_a_device() {
    let from: Vec<f32> = (0..512).map(|i| ((i * 37 % 101) as f32 - 50.0) / 8.0).collect();
    for context in contexts() {
        let values = context.upload(&from).unwrap();
        let mut to = context.buffer(Kind::F32, 2).unwrap();
        let mut votes = context.buffer(Kind::U32, 16).unwrap();
        let args =
            [Arg::from(&to.view_mut()), Arg::from(&values.view()), Arg::from(&votes.view_mut())];
        let plan = Plan { shared_bytes: 1024, ..plan("sums", 2, 256) };
        run(&context, &plan, &args).unwrap();
        // Eighths below 2^20: every order has the same sum.
        let want: Vec<f32> = from.chunks(256).map(|part| part.iter().sum()).collect();
        assert_eq!(context.download::<f32>(to.view()).unwrap(), want);
        let bit = |(i, x): (usize, &f32)| u32::from(*x > 0.0) << i;
        let want: Vec<u32> =
            from.chunks(32).map(|part| part.iter().enumerate().map(bit).sum()).collect();
        assert_eq!(context.download::<u32>(votes.view()).unwrap(), want);
    }
}

#[test]
fn a_captured_launch_runs_when_it_is_replayed() {
    let driver = Emulated::new(Order::Forward, 1 << 20);
    let context = Context::new(Arc::clone(&driver) as Arc<dyn Driver>).with_new_stream().unwrap();
    assert_ne!(context.stream(), Stream::MAIN);
    let mut from = context.upload(&[0u32; 64]).unwrap();
    let mut to = context.zeros(Kind::U32, 64).unwrap();
    let args = [Arg::from(&to.view_mut()), Arg::from(&from.view())];
    driver.begin_capture(context.stream()).unwrap();
    run(&context, &plan("reverse_right", 1, 64), &args).unwrap();
    let graph = driver.end_capture(context.stream()).unwrap();
    for round in 1..3 {
        let values: Vec<u32> = (0..64).map(|i| i * round).collect();
        context.write(&mut from.view_mut(), &values).unwrap();
        // SAFETY: both buffers are there.
        unsafe { driver.replay(graph, context.stream()).unwrap() };
        let want: Vec<u32> = values.iter().rev().copied().collect();
        assert_eq!(context.download::<u32>(to.view()).unwrap(), want);
    }
    driver.drop_graph(graph);
}

/// Goal: what captured work takes and frees stays its own. Method: a temporary buffer inside of it, and, between
/// replays, another of its size that must not be written.
#[test]
fn captured_work_keeps_its_temporary_memory() {
    for driver in Emulated::both() {
        let cx = Context::new(Arc::clone(&driver) as Arc<dyn Driver>);
        let mut from = Pinned::<u32>::new(&cx, 64).unwrap();
        let mut to = cx.zeros(Kind::U32, 64).unwrap();
        from.iter_mut().zip(0..).for_each(|(x, i)| *x = i);
        let mut work = |cx: &Context| {
            let mut between = cx.buffer(Kind::U32, 64)?;
            // SAFETY: `from` is changed between replays only, each of which is done when it returns here.
            unsafe { from.write(&mut between.view_mut())? };
            let args = [Arg::from(&to.view_mut()), Arg::from(&between.view())];
            run(cx, &plan("reverse_right", 1, 64), &args)
        };
        let workspace = Workspace::new(&cx);
        // SAFETY: `from` and `to` live on.
        let captured = unsafe { cx.capture(&workspace, &mut work).unwrap() };
        let alloc_count = cx.stats().alloc_count;
        let beside = cx.upload(&[7u32; 64]).unwrap();
        assert_eq!(
            cx.stats().alloc_count,
            alloc_count + 1,
            "the temporary memory is not for others"
        );
        from.iter_mut().for_each(|x| *x += 100);
        // SAFETY: as above.
        unsafe { captured.replay().unwrap() };
        let want: Vec<u32> = from.iter().rev().copied().collect();
        assert_eq!(cx.download::<u32>(to.view()).unwrap(), want);
        assert_eq!(cx.download::<u32>(beside.view()).unwrap(), [7; 64]);
        let mut other = cx.zeros(Kind::U32, 64).unwrap();
        let mut more = |cx: &Context| {
            let mut between = cx.buffer(Kind::U32, 64)?;
            cx.clear(&mut between.view_mut())?;
            cx.copy(&mut other.view_mut(), between.view())
        };
        // SAFETY: `other` lives on.
        let again = unsafe { cx.capture(&workspace, &mut more).unwrap() };
        assert_eq!(cx.stats().alloc_count, alloc_count + 2, "work of one workspace shares it");
        drop((captured, workspace));
        // SAFETY: as above.
        unsafe { again.replay().unwrap() };
        assert_eq!(cx.download::<u32>(beside.view()).unwrap(), [7; 64]);
        drop((again, other));
        let mut read = Pinned::<u32>::new(&cx, 64).unwrap();
        read.read(to.view()).unwrap();
        assert_eq!(*read, *want);
        drop((to, beside));
        assert_eq!(cx.stats().in_use_bytes, 0);
    }
}

/// Goal: what another thread asks for while one captures is no part of the capture, and is done. Method: a thread that
/// copies to the device and back, told to when the capture is half through.
#[test]
fn what_others_ask_for_waits_for_a_capture_and_is_no_part_of_it() {
    let cx = Context::new(Emulated::new(Order::Forward, 1 << 20));
    let mut to = cx.zeros(Kind::U32, 64).unwrap();
    let (tell, told) = std::sync::mpsc::channel::<()>();
    let (say, said) = std::sync::mpsc::channel();
    let other = cx.clone();
    let beside = std::thread::spawn(move || {
        told.recv().unwrap();
        let copied = other.upload(&[9u32; 64]).unwrap();
        say.send(other.download::<u32>(copied.view()).unwrap()).unwrap();
    });
    let mut passes = 0;
    let work = |cx: &Context| {
        passes += 1;
        if passes == 2 {
            tell.send(()).unwrap();
            let answer = said.recv_timeout(std::time::Duration::from_millis(50));
            assert!(answer.is_err(), "it was asked for in the middle of a capture");
        }
        cx.clear(&mut to.view_mut())
    };
    let workspace = Workspace::new(&cx);
    // SAFETY: `to` lives on.
    let captured = unsafe { cx.capture(&workspace, work).unwrap() };
    assert_eq!(said.recv().unwrap(), [9; 64]);
    beside.join().unwrap();
    cx.write(&mut to.view_mut(), &[5u32; 64]).unwrap();
    // SAFETY: as above.
    unsafe { captured.replay().unwrap() };
    assert_eq!(cx.download::<u32>(to.view()).unwrap(), [0; 64]);
}

#[test]
fn memory_is_bounded_and_fresh_memory_holds_nans() {
    let driver = Emulated::new(Order::Forward, 1 << 20);
    let context = Context::new(driver);
    let fresh = context.buffer(Kind::F32, 100).unwrap();
    assert!(context.download::<f32>(fresh.view()).unwrap().iter().all(|x| x.is_nan()));
    let error = context.buffer(Kind::F32, 1 << 20).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
}
