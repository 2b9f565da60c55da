#include "torch/schema.h"
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *word;
    torch_base  base;
} words[] = {
    { "Tensor", TORCH_TENSOR },
    { "int", TORCH_INT },
    { "SymInt", TORCH_INT },
    { "float", TORCH_FLOAT },
    { "bool", TORCH_BOOL },
    { "str", TORCH_STRING },
    { "ScalarType", TORCH_DTYPE },
    { "Device", TORCH_DEVICE },
    { "Layout", TORCH_CODE },
    { "MemoryFormat", TORCH_CODE },
    { "Generator", TORCH_GENERATOR },
};

static const char *skip_space(const char *p)
{
    while (isspace((unsigned char)*p)) ++p;
    return p;
}

static bool in_word(char c) { return isalnum((unsigned char)c) || c == '_'; }

/* One "Tensor(a!)?[] name = default" from *p up to its comma or the end of the list. */
static sgk_status read_value(torch_value *v, const char *op, const char **p)
{
    const char *start = skip_space(*p), *end = start;
    while (in_word(*end)) ++end;
    size_t i = 0;
    while (i < sizeof words / sizeof *words && !(strlen(words[i].word) == (size_t)(end - start) && strncmp(words[i].word, start, (size_t)(end - start)) == 0)) ++i;
    SGK_REQUIRE(i < sizeof words / sizeof *words, SGK_FAILED, "%s: schema has the type '%.*s', which the binding does not know", op, (int)(end - start), start);
    *v = (torch_value){ .base = (uint8_t)words[i].base };
    for (start = skip_space(end);; start = skip_space(start)) {     /* marks, in any order and with any spaces */
        if (*start == '!') ++start;
        else if (*start == '(') start += strcspn(start, ")") + (strchr(start, ')') != NULL);
        else if (*start == '[') v->list = true, v->optional_items = v->optional, v->optional = false, start += strcspn(start, "]") + (strchr(start, ']') != NULL);
        else if (*start == '?') v->optional = true, ++start;
        else break;
    }
    for (end = start; in_word(*end); ++end) continue;
    SGK_REQUIRE(end - start <= UINT8_MAX, SGK_FAILED, "%s: schema has a name of %d letters, expected at most %d", op, (int)(end - start), UINT8_MAX);
    v->name = start, v->length = (uint8_t)(end - start);
    int depth = 0;                                                  /* a default: up to the comma outside brackets */
    for (; *end && !(depth == 0 && (*end == ',' || *end == ')')); ++end) depth += (*end == '[' || *end == '(') - (*end == ']' || *end == ')');
    *p = end;
    return SGK_OK;
}

/* A list in parentheses; *p starts behind the opening one and ends behind the closing one. */
static sgk_status read_list(torch_value *values, int limit, int *count, const char *op, const char **p)
{
    for (*count = 0; *skip_space(*p) != ')';) {
        const char *at = skip_space(*p);
        SGK_REQUIRE(*at, SGK_FAILED, "%s: schema ends within its list of arguments, expected ')'", op);
        if (*at == '*') {                                           /* keyword-only from here on: the same slots */
            *p = at + 1;
        } else {
            SGK_REQUIRE(*count < limit, SGK_FAILED, "%s: schema has more than %d values in a list", op, limit);
            SGK_TRY(read_value(&values[(*count)++], op, p));
        }
        *p = skip_space(*p);
        if (**p == ',') ++*p;
    }
    *p = skip_space(*p) + 1;
    return SGK_OK;
}

sgk_status torch_schema_read(torch_schema *schema, const char *op, const char *text)
{
    const char *p = skip_space(text);
    SGK_REQUIRE(*p++ == '(', SGK_FAILED, "%s: schema is '%s', expected it to start with '('", op, text);
    SGK_TRY(read_list(schema->arg, TORCH_ARGS, &schema->nargs, op, &p));
    p = skip_space(p);
    SGK_REQUIRE(strncmp(p, "->", 2) == 0, SGK_FAILED, "%s: schema is '%s', expected '->' behind its arguments", op, text);
    p = skip_space(p + 2);
    if (*p == '(') return ++p, read_list(schema->result, TORCH_RESULTS, &schema->nresults, op, &p);
    schema->nresults = 1;
    return read_value(&schema->result[0], op, &p);
}

void torch_schema_narrow(torch_schema *schema, const char *call)
{
    for (const char *p = call; (p = strstr(p, "32(")); p += 3) {
        const bool  plain = p > call && p[-1] == 'I', optional = p > call + 1 && p[-1] == 'O' && p[-2] == 'I';
        const char *word = p - (plain ? 1 : 2);
        if ((!plain && !optional) || (word > call && in_word(word[-1]))) continue;
        const long i = strtol(p + 3, NULL, 10);
        if (i >= 0 && i < schema->nargs) schema->arg[i].narrow = true;
    }
}
