"""Ray and DeepSpeed jobs over the method, and the `nvg` command line."""
