"""What tests of the operators compare with."""
