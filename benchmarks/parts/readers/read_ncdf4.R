# R's package ncdf4: Rscript read_ncdf4.R FILE NAMES OUT
suppressMessages(library(ncdf4))
given <- commandArgs(TRUE)
file <- nc_open(given[1])
names <- read.table(given[2], sep = "\t", stringsAsFactors = FALSE, quote = "", comment.char = "")
told <- file(file.path(given[3], "shown.tsv"), "w", encoding = "native.enc")
say <- function(...) writeLines(enc2utf8(paste(..., sep = "\t")), told, useBytes = TRUE)
attempt <- function(what) tryCatch(what, error = function(e) say("trouble", gsub("\\s+", " ", conditionMessage(e))))
attributes_of <- function(key, name) attempt({
  found <- ncatt_get(file, name)
  for (one in names(found)) {
    if (is.character(found[[one]])) say("attribute", key, one, found[[one]])
  }
})
attributes_of("/", 0)
for (row in seq_len(nrow(names))) {
  key <- names[row, 2]
  attempt({
    value <- ncvar_get(file, key, collapse_degen = FALSE, raw_datavals = TRUE)
    target <- paste0(row, ".values")
    if (names[row, 1] == "texts") {
      writeBin(charToRaw(enc2utf8(paste(value, collapse = "\x1e"))), file.path(given[3], target))
    } else {
      writeBin(as.double(value), file.path(given[3], target), size = 8, endian = "little")
    }
    say(names[row, 1], key, target)
  })
  attributes_of(key, key)
  attempt({
    dims <- rev(sapply(file$var[[key]]$dim, function(one) one$name))
    if (length(dims) > 0) say("axes", key, paste(sub(".*/", "", dims), collapse = " "))
  })
}
close(told)
