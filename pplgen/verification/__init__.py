"""Every exact check and reference value that the documentation claims, measured again on the machine at hand."""
