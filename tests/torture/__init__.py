"""Kill it anywhere, feed it anything: the long forms of the tests of reliability, as rows of one table (`make torture`)."""
