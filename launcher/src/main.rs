//! hv
fn main() {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).with_writer(std::io::stderr).init();
    let name = std::env::args().nth(2).unwrap();
    let image = hv_core::Image::parse(sample_guests::find(&name).unwrap().image.to_vec()).unwrap();
    let vm = hv_core::Vm::start(hv_core::Config::new(image)).unwrap();
    let report = vm.wait();
    println!("{report:#?}");
}
