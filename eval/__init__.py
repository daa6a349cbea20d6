"""Evaluation: feature extractors, scores, the sampling pool on Ray, pictures and the report."""
