"""Is a sampler's law the sequential one? Tests of plans and of steps, and mutants that must fail them."""
