"""Studies: methods times seeds times settings, run fairly and put into a table."""
