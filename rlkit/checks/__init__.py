"""This room refuses in one line what no run can mean, before anything is loaded."""
