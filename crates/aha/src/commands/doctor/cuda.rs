//! What of CUDA was found: the driver, its devices and NVIDIA's libraries.

use aha_compute::cuda::doctor::Findings;
use serde_json::{Value, json};

use super::{Check, Status};
use crate::text;

/// The check of these findings. `kernel_driver` is the version of the system's driver.
///
/// A GPU is never needed: runs whose device is "auto" compute on the processor where none can be used. What one would
/// need is said.
pub(super) fn check(findings: &Findings, kernel_driver: Option<String>) -> Check {
    let devices: Vec<String> = findings.devices.iter().enumerate().map(shown_device).collect();
    let missing = [findings.compiler.as_ref().err(), findings.products.as_ref().err()];
    let missing: Vec<&str> = missing.into_iter().flatten().map(String::as_str).collect();
    let device_count = findings.devices.iter().filter(|device| device.is_ok()).count();
    let has_device = device_count > 0;
    let exchange = match &findings.exchange {
        _ if !has_device => "",
        Ok(()) => "; NCCL for several devices",
        Err(_) => "; no NCCL, which only several devices need",
    };
    let found = match &findings.driver {
        Ok(version) => format!("driver for CUDA {version}; {}{exchange}", devices.join("; ")),
        Err(_) if kernel_driver.is_some() => "a driver, but not its library".to_owned(),
        Err(_) => "no CUDA driver".to_owned(),
    };
    let advice = match (&findings.driver, has_device, missing.first()) {
        (Err(why), ..) => kernel_driver.as_ref().map(|_| why.clone()),
        (Ok(_), false, _) => findings.devices.iter().find_map(|device| device.clone().err()),
        (Ok(_), true, Some(missing)) => Some((*missing).to_owned()),
        (Ok(_), true, None) if device_count > 1 => findings.exchange.clone().err(),
        (Ok(_), true, None) => None,
    };
    let is_usable = has_device && missing.is_empty();
    let place = if is_usable { "a device" } else { "the processor" };
    let error = |result: Option<&String>| result.cloned();
    Check {
        name: "cuda",
        status: if advice.is_some() { Status::Limited } else { Status::Ok },
        found: format!("{found}; runs compute on {place}"),
        advice,
        facts: json!({
            "driver": kernel_driver,
            "cuda_version": findings.driver.as_ref().ok(),
            "devices": findings.devices.iter().map(device_facts).collect::<Vec<Value>>(),
            "compiler_version": findings.compiler.as_ref().ok(),
            "compiler_error": error(findings.compiler.as_ref().err()),
            "has_products": findings.products.is_ok(),
            "products_error": error(findings.products.as_ref().err()),
            "has_exchange": findings.exchange.is_ok(),
            "exchange_error": error(findings.exchange.as_ref().err()),
            "is_usable": is_usable,
        }),
    }
}

fn shown_device((ordinal, device): (usize, &Result<aha_compute::cuda::Info, String>)) -> String {
    match device {
        Ok(info) => {
            let ((major, minor), memory) = (info.capability, text::size(info.memory_bytes as u64));
            format!("cuda:{ordinal} {}, compute capability {major}.{minor}, {memory}", info.name)
        }
        Err(why) => why.clone(),
    }
}

fn device_facts(device: &Result<aha_compute::cuda::Info, String>) -> Value {
    match device {
        Ok(info) => json!({
            "name": info.name,
            "compute_capability": format!("{}.{}", info.capability.0, info.capability.1),
            "multiprocessor_count": info.multiprocessor_count,
            "memory_bytes": info.memory_bytes,
        }),
        Err(why) => json!({ "error": why }),
    }
}

#[cfg(test)]
mod tests {
    use aha_compute::cuda::{Info, Limits};

    use super::*;

    fn none() -> Findings {
        Findings {
            driver: Err("the NVIDIA driver (libcuda) was not found; install the driver".into()),
            devices: Vec::new(),
            compiler: Err("libnvrtc was not found; install it".into()),
            products: Err("libcublasLt was not found; install it".into()),
            exchange: Err("NCCL (libnccl) was not found; install it".into()),
        }
    }

    fn h200() -> Findings {
        let info = Info {
            name: "NVIDIA H200".into(),
            capability: (9, 0),
            multiprocessor_count: 132,
            memory_bytes: 139 << 30,
            limits: Limits::SM_90,
        };
        Findings {
            driver: Ok("13.0".into()),
            devices: vec![Ok(info)],
            compiler: Ok("13.0".into()),
            products: Ok(()),
            exchange: Ok(()),
        }
    }

    #[test]
    fn a_machine_without_a_gpu_needs_nothing() {
        let check = check(&none(), None);
        assert_eq!((check.status, check.advice), (Status::Ok, None));
        assert!(check.found.starts_with("no CUDA driver;"), "{}", check.found);
    }

    #[test]
    fn a_driver_without_its_library_is_said() {
        let check = check(&none(), Some("580.1".into()));
        assert_eq!(check.status, Status::Limited);
        assert!(check.advice.is_some_and(|advice| advice.contains("libcuda")));
    }

    /// Goal: NCCL is listed, and asked for where there are several devices.
    #[test]
    fn only_several_devices_need_to_exchange() {
        let [one, two] = [1, 2].map(|count| {
            let devices = vec![h200().devices.remove(0); count];
            check(&Findings { devices, exchange: none().exchange, ..h200() }, None)
        });
        assert_eq!((one.status, &one.advice), (Status::Ok, &None));
        assert!(one.found.contains("no NCCL, which only several devices need"), "{}", one.found);
        assert_eq!(two.status, Status::Limited);
        assert!(two.advice.is_some_and(|advice| advice.contains("libnccl")));
        for check in [one.facts, two.facts] {
            assert_eq!(
                (&check["has_exchange"], &check["is_usable"]),
                (&json!(false), &json!(true))
            );
        }
        let whole = check(&h200(), None);
        assert!(whole.found.contains("NCCL for several devices"), "{}", whole.found);
    }

    #[test]
    fn a_device_is_shown_with_what_it_still_needs() {
        let whole = check(&h200(), Some("580.1".into()));
        let want = "driver for CUDA 13.0; cuda:0 NVIDIA H200, compute capability 9.0, ";
        assert!(whole.found.starts_with(want), "{}", whole.found);
        assert_eq!(whole.facts["devices"][0]["compute_capability"], "9.0");
        assert_eq!((whole.status, &whole.advice), (Status::Ok, &None));
        assert!(whole.found.ends_with("runs compute on a device"), "{}", whole.found);
        let part = check(&Findings { products: none().products, ..h200() }, None);
        assert!(part.found.ends_with("runs compute on the processor"), "{}", part.found);
        assert!(part.advice.is_some_and(|advice| advice.contains("libcublasLt")));
        let hidden = Findings { devices: vec![Err("the driver shows no device".into())], ..h200() };
        let hidden = check(&hidden, None);
        assert!(hidden.advice.is_some_and(|advice| advice.contains("no device")));
    }
}
