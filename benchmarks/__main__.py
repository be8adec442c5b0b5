"""`make bench`: every comparison, one after another."""

from benchmarks import attacks, crosscheck, export, frozen, information, ladder, quantizer, training

if __name__ == "__main__":
    quantizer.main()
    training.main()
    information.main()
    attacks.main()
    frozen.main()
    ladder.main()
    crosscheck.main()
    export.main()
