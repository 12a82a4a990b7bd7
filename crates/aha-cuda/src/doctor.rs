//! What of CUDA is there on a machine. Looking neither panics nor fails.

use crate::{Info, nvidia, nvrtc};

/// What was found.
#[derive(Clone, Debug)]
pub struct Findings {
    /// The version of CUDA that the driver knows, such as 13.0, or why there is none.
    pub driver: Result<String, String>,
    /// The driver's devices in order, or why there are none.
    pub devices: Vec<Result<Info, String>>,
    /// The run-time compiler's version, or what to do to have one.
    pub compiler: Result<String, String>,
    /// The library of matrix products, or what to do to have one.
    pub products: Result<(), String>,
    /// The library by which several devices exchange, or what to do to have one. One device doesn't need it.
    pub exchange: Result<(), String>,
}

/// Looks for driver, devices and libraries.
pub fn look() -> Findings {
    let shown = |error: crate::Error| error.to_string();
    let driver = nvidia::driver_version()
        .map(|version| format!("{}.{}", version / 1000, version % 1000 / 10))
        .map_err(shown);
    let devices = match nvidia::device_count() {
        Ok(count) => (0..count).map(|i| nvidia::describe(i).map_err(shown)).collect(),
        Err(error) if driver.is_ok() => vec![Err(shown(error))],
        Err(_) => Vec::new(),
    };
    let compiler = nvrtc::version().map(|(major, minor)| format!("{major}.{minor}")).map_err(shown);
    let products = nvidia::ask_for_products().map_err(shown);
    let exchange = nvidia::ask_for_exchange().map_err(shown);
    Findings { driver, devices, compiler, products, exchange }
}

#[cfg(test)]
mod tests {
    #[test]
    fn looking_finds_something_or_says_why_not() {
        let found = super::look();
        match found.driver {
            Err(why) => {
                assert!(why.contains("install"), "{why}");
                assert!(found.devices.is_empty());
            }
            Ok(version) => assert!(version.contains('.') && !found.devices.is_empty()),
        }
        let libraries = [found.compiler.err(), found.products.err(), found.exchange.err()];
        for missing in libraries.into_iter().flatten() {
            assert!(missing.contains("LD_LIBRARY_PATH"), "{missing}");
        }
    }
}
