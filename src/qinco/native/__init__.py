"""The compiled engine for processors: C++ in the files beside this one, and its binding."""
