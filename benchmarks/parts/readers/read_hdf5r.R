# R's package hdf5r: Rscript read_hdf5r.R FILE NAMES OUT
suppressMessages(library(hdf5r))
given <- commandArgs(TRUE)
file <- H5File$new(given[1], mode = "r")
names <- read.table(given[2], sep = "\t", stringsAsFactors = FALSE, quote = "", comment.char = "")
told <- file(file.path(given[3], "shown.tsv"), "w", encoding = "native.enc")
say <- function(...) writeLines(enc2utf8(paste(..., sep = "\t")), told, useBytes = TRUE)
attempt <- function(what) tryCatch(what, error = function(e) say("trouble", gsub("\\s+", " ", conditionMessage(e))))
attributes_of <- function(key, object) {
  for (one in h5attr_names(object)) {
    if (!one %in% c("DIMENSION_LIST", "REFERENCE_LIST")) attempt({
      value <- h5attr(object, one)
      if (is.character(value) && length(value) == 1) say("attribute", key, one, value)
    })
  }
}
attributes_of("/", file)
for (row in seq_len(nrow(names))) {
  key <- names[row, 2]
  attempt({
    dataset <- file[[key]]
    value <- dataset$read()
    target <- paste0(row, ".values")
    if (names[row, 1] == "texts") {
      writeBin(charToRaw(enc2utf8(paste(value, collapse = "\x1e"))), file.path(given[3], target))
    } else {
      writeBin(as.double(value), file.path(given[3], target), size = 8, endian = "little")
    }
    say(names[row, 1], key, target)
    attributes_of(key, dataset)
  })
}
close(told)
