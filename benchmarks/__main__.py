"""`make bench`: every comparison, one after another."""

from benchmarks import attacks, crosscheck, export, information, ladder, quantizer, training

if __name__ == "__main__":
    quantizer.main()
    training.main()
    information.main()
    attacks.main()
    ladder.main()
    crosscheck.main()
    export.main()
