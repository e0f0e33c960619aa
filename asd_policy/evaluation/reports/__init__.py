"""Results as people read them: tables, plots, pages, videos."""
