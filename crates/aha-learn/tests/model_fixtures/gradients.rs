//! Gradients of the loss of a language model: the mean negative log-prob.

use aha_compute::Dtype;

use super::support::{
    Comparison, NAMES, Setup, backward, dir, distances, fixture, fixtures, flat, gradients, ids,
    json, keys, l2, norm_distances, record,
};

/// The loss of all tokens, and of those from the twentieth on.
const CASES: [(&str, usize); 2] = [("len64", 1), ("len64_masked_first20", 20)];

#[test]
fn language_model_gradients_are_those_of_torch() {
    let mut comparison = Comparison::default();
    let mut files_read = 0;
    for name in NAMES {
        let fixture = fixture(name);
        let cases = &fixture["lm_grads"];
        assert_eq!(keys(cases), CASES.map(|(key, _)| key), "{name}");
        let sequence = ids(&fixture["sequences"]["len64"]["ids"]);
        for setup in Setup::all(name) {
            let (model, device, bounds) = (setup.load(name), &setup.device, setup.bounds);
            for (key, from) in CASES {
                let (case, what) = (&cases[key], format!("{name} {key}"));
                let (tape, logps, _) = record(&model, &[(sequence.clone(), from)], 1.0);
                let count = logps.value().len();
                let sum: f64 = logps.value().host().iter().map(|&x| f64::from(x)).sum();
                let want = case["loss_f32"].as_f64().unwrap();
                let off = (-sum / count as f64 - want).abs() / want;
                comparison.near(device, "loss", &what, off, bounds.loss);
                let grads = backward(&model, tape, logps, &vec![-1.0 / count as f32; count]);
                comparison.same_bits(device, &what, &flat(&grads));
                for (weight, off) in norm_distances(&model, &grads, &case["l2_f32"]) {
                    let what = format!("{what} {weight}");
                    comparison.near(device, "norm of the gradient", &what, off, bounds.norm);
                }
                let Some(file) = case["full"].as_str() else { continue };
                files_read += 1;
                for (weight, off) in distances(&model, &grads, &gradients(&dir(name).join(file))) {
                    let what = format!("{what} {weight}");
                    comparison.near(device, "gradient", &what, off, bounds.gradient);
                }
            }
        }
    }
    assert_eq!(
        files_read,
        NAMES.map(|name| Setup::all(name).len()).iter().sum::<usize>(),
        "one file for each model"
    );
    comparison.show();
}

/// What the distance of one weight's gradient may be, as a multiple of PyTorch's. Those of norms and biases are few
/// numbers, each a sum in which much cancels, and their distances scatter.
const MATRIX_FACTOR: f64 = 1.0;
const VECTOR_FACTOR: f64 = 1.5;

/// Both round gradients of activations; PyTorch rounds those of weights and of the residual stream as well. So ours
/// must be nearer to f32: each matrix, and all weights together.
#[test]
fn bf16_moves_gradients_less_than_it_moves_those_of_torch() {
    let torch = json(&fixtures().join("torch_bf16.json"));
    let mut comparison = Comparison::default();
    for name in NAMES {
        let sequence = ids(&fixture(name)["sequences"]["len64"]["ids"]);
        let want = gradients(&dir(name).join("lm_grads_len64.safetensors"));
        let shares = &torch["models"][name]["lm_grad_distances"]["len64"];
        assert_eq!(keys(shares).len(), want.len(), "{name}");
        for setup in Setup::all(name).iter().filter(|setup| setup.device.dtype() == Dtype::Bf16) {
            let (model, device) = (setup.load(name), &setup.device);
            let (tape, logps, _) = record(&model, &[(sequence.clone(), 1)], 1.0);
            let count = logps.value().len();
            let grads = backward(&model, tape, logps, &vec![-1.0 / count as f32; count]);
            let (mut ours_all, mut theirs_all) = (Vec::new(), Vec::new());
            for (weight, ours) in distances(&model, &grads, &want) {
                let theirs = shares[weight].as_f64().unwrap();
                let size = l2(want[weight].iter().map(|&x| f64::from(x)));
                ours_all.push(ours * size);
                theirs_all.push(theirs * size);
                let id = model.params().find(weight).unwrap();
                let (kind, factor) = match model.params().value(id).shape().len() {
                    1 => ("distance of a vector, of torch's", VECTOR_FACTOR),
                    _ => ("distance of a matrix, of torch's", MATRIX_FACTOR),
                };
                comparison.near(device, kind, &format!("{name} {weight}"), ours / theirs, factor);
            }
            let share = l2(ours_all.into_iter()) / l2(theirs_all.into_iter());
            comparison.near(device, "distance of all weights, of torch's", name, share, 1.0);
        }
    }
    comparison.show();
}
