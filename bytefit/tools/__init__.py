"""Other people's programs that read what bytefit makes, each behind an extra: dashboards and the evaluation harness."""
