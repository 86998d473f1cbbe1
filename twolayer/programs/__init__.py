"""The same training by several libraries, one module each: what the comparison and the benchmark run."""
