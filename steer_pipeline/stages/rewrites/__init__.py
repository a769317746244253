"""Every news item rewritten in every variant, judged, filtered, released."""
