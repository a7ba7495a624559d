"""This package serves the page of a study on loopback, and renews it while runs go on."""
